"""Compiled blocks train as plain ones do, from few graphs; slow: with the compiler's own kernels.

The quick tests trace and differentiate the graphs and leave out the code generation.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dsvlp import config
from dsvlp.engine.parts import TOWERS, backward_of, marked
from dsvlp.engine.timer import StepTimer
from dsvlp.errors import MissingDependency, RecipeError
from dsvlp.layers import compiled
from dsvlp.layers.swin import DropPath
from dsvlp.models.swin import SwinTower
from dsvlp.recipe import Recipe, Swin
from dsvlp.system import System, TrainRequest, build
from dsvlp.types import Batch
from tests.batches import (
    make_batch,
    make_facts,
    make_fiber_recipe,
    make_meter_recipe,
    make_objects,
    make_pixelbert_recipe,
    make_recipe,
    make_semvlp_recipe,
)

CPU = torch.device("cpu")
PLAIN = ("model.text.dropout=0.0", "model.image.drop_path=0.0")
FEWER = ("model.image.depths=[1, 1, 1, 1]", "model.fusion.plan=[[4, 0, 3]]")
RECIPES = {
    "svl": lambda *more: make_recipe("model.cross_layers=2", *more),
    "fiber": lambda *more: make_fiber_recipe(*PLAIN, *more),
    "meter": lambda *more: make_meter_recipe(*PLAIN, *more),
    "pixelbert": make_pixelbert_recipe,
    "semvlp": make_semvlp_recipe,
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def batch(recipe: Recipe, seed: int) -> Batch:
    if recipe.model.system == "semvlp":
        return make_objects(8, seed=seed)
    partners = recipe.objectives.itc is None
    made = make_batch(8, image_size=recipe.model.image_size, partners=partners, seed=seed)
    return replace(made, rows=made.rows + 100 * seed)


def trained(
    recipe: Recipe, compile_: bool, seeds: tuple[int, ...] = (1, 2, 3)
) -> tuple[list, list[int], System]:
    """Returns (losses and gradients of each batch, graphs after each, the system)."""
    system = build(recipe, make_facts()).train()
    for name, parameter in system.named_parameters():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.5)  # closed gates would hide what a fused block reads
    if compile_:
        compiled.compile_blocks(system, CPU)
    found, counted = [], []
    for seed in seeds:
        system.zero_grad()
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.engine.precision == "bf16"):
            losses = system(TrainRequest(system.prepare(batch(recipe, seed))))
        sum(loss.sum for loss in losses.values()).backward()
        # A graph gives zeros to a weight whose output nobody reads, plain code none: the same to ZeRO.
        gradients = {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in system.named_parameters()
        }
        found.append(({n: loss.sum.detach() for n, loss in losses.items()}, gradients))
        counted.append(graphs())
    return found, counted, system


def assert_agree(one: list, other: list, tolerance: float) -> None:
    for (losses, gradients), (their_losses, their_gradients) in zip(one, other, strict=True):
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(their_losses[name].item(), rel=tolerance), name
        top = max(value.abs().max() for value in gradients.values())
        for name, value in gradients.items():
            # Below a thousandth of the largest gradient stand sums of terms that cancel.
            largest = value.abs().max().clamp(min=1e-3 * top)
            assert (value - their_gradients[name]).abs().max() <= tolerance * largest, name


def assert_compiled_is_plain(name: str, *overrides: str) -> int:
    """Returns the number of graphs."""
    recipe = RECIPES[name](*overrides)
    plain, none, _ = trained(recipe, compile_=False)
    fast, counted, _ = trained(recipe, compile_=True)
    assert_agree(plain, fast, 1e-5)
    assert none == [0, 0, 0]
    assert counted[0] == counted[-1] > 0, "other data, another graph"
    return counted[0]


@pytest.mark.parametrize("mode", ["none", "selective"])
def test_svls_blocks_are_three_graphs_with_plain_losses_and_gradients(mode: str, without_kernels):
    assert assert_compiled_is_plain("svl", f"engine.activation_checkpointing={mode}") == 3


def test_fibers_blocks_have_plain_losses_and_gradients(without_kernels):
    graphs_ = assert_compiled_is_plain("fiber", *FEWER, "engine.activation_checkpointing=full")
    # Four stages of Swin, text layers, the fused pair.
    assert graphs_ == 6


@pytest.mark.parametrize("mode", ["none", "full"])
def test_semvlps_blocks_are_four_graphs_with_plain_losses_and_gradients(mode: str, without_kernels):
    # One stream, words, objects below the cross-attention; all layers with it.
    assert assert_compiled_is_plain("semvlp", f"engine.activation_checkpointing={mode}") == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fiber", "meter", "pixelbert"])
def test_whole_systems_have_plain_losses_and_gradients(name: str, without_kernels):
    assert assert_compiled_is_plain(name) < 12


@pytest.mark.slow
@pytest.mark.parametrize(("name", "overrides"), [("svl", ()), ("fiber", FEWER)])
def test_the_compilers_kernels_give_the_plain_losses_and_gradients(name: str, overrides: tuple[str, ...]):
    assert_compiled_is_plain(name, *overrides)


@pytest.mark.slow
def test_dropout_in_a_graph_is_a_function_of_the_seed_and_recomputed_as_it_was():
    keys = ("model.cross_layers=2", "model.text.dropout=0.3")
    kept, _, _ = trained(make_recipe(*keys), compile_=True, seeds=(1, 1, 2))
    full = make_recipe(*keys, "engine.activation_checkpointing=full")
    recomputed, _, _ = trained(full, compile_=True, seeds=(1, 1, 2))
    assert_agree(kept[:1], kept[1:2], 0.0)
    assert_agree(kept, recomputed, 1e-6)
    dry, _, _ = trained(make_recipe("model.cross_layers=2"), compile_=False, seeds=(1,))
    assert dry[0][0]["mlm"] != kept[0][0]["mlm"]


def test_blocks_of_different_drop_path_rates_share_a_graph(without_kernels):
    table = config.validate(Swin, {"width": 16, "depths": (1, 6), "heads": (2, 4), "drop_path": 0.3}, "test")
    tower = SwinTower(table, 16).train()
    compiled.compile_blocks(tower, CPU)
    tower(torch.randn(2, 3, 16, 16)).sum().backward()
    assert len({round(float(m.keep), 4) for m in tower.modules() if isinstance(m, DropPath)}) == 6
    assert graphs() == 2


def test_without_gradients_nothing_is_compiled(without_kernels):
    recipe = make_recipe()
    system = build(recipe, make_facts()).eval()
    prepared = system.prepare(batch(recipe, 1))
    expected = system(TrainRequest(prepared))
    compiled.compile_blocks(system, CPU)
    with torch.no_grad():
        found = system(TrainRequest(prepared))
    assert graphs() == 0
    assert all(torch.equal(loss.sum, found[name].sum) for name, loss in expected.items())


def test_compiling_changes_no_name_of_a_weight(without_kernels):
    system = build(make_fiber_recipe(), make_facts())
    before = [name for name, _ in system.named_parameters()], list(system.state_dict())
    compiled.compile_blocks(system, CPU)
    assert ([name for name, _ in system.named_parameters()], list(system.state_dict())) == before


@pytest.mark.parametrize(("name", "overrides"), [("svl", ()), ("fiber", FEWER)])
def test_a_compiled_block_is_booked_as_a_whole(name: str, overrides: tuple[str, ...], without_kernels):
    recipe = RECIPES[name](*overrides)
    found, counted, system = trained(recipe, compile_=True, seeds=(1,))
    prepared, timer = system.prepare(batch(recipe, 1)), StepTimer(CPU)
    system.zero_grad()
    with marked(system, timer, backward=True):
        for _ in range(2):
            timer.read()
            with timer.part("forward"):
                losses = system(TrainRequest(prepared))
            with timer.part("backward"):
                sum(loss.sum for loss in losses.values()).backward()
        parts, _ = timer.read()
    assert all(parts[part] > 0 and parts[backward_of(part)] > 0 for part in TOWERS)
    assert graphs() == counted[0]
    gradients: dict[str, Tensor] = found[0][1]
    for key, parameter in system.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, 2 * gradients[key], rtol=1e-5, atol=1e-6), key


def test_a_system_without_blocks_is_refused_by_kind():
    with pytest.raises(RecipeError, match="SwinTransformerBlock"):
        compiled.compile_blocks(nn.Linear(2, 2), CPU)


def test_what_the_machine_lacks_to_compile_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingDependency, match=r"C\+\+ compiler \(g\+\+\)"):
        compiled.check_compiler(CPU)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(MissingDependency, match=r"triton and a C compiler \(cc\) and Python's headers"):
        compiled.check_compiler(torch.device("cuda"))


def test_this_machine_can_compile_where_it_has_a_compiler_and_headers():
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    compiled.check_compiler(CPU)
