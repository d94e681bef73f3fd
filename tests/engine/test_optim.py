from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dsvlp import recipe as recipes
from dsvlp import system as systems
from dsvlp.engine.optim import GuardedOptimizer, clip, is_decayed, parameter_groups, part_of, total_norm
from dsvlp.models import fiber_names
from dsvlp.types import DataFacts
from tests.batches import make_facts, make_fiber_recipe
from tests.engine.toy import Toy

PARITY = Path(__file__).parents[3] / "shared/parity"

RECIPE = recipes.load("tiny_svl", ["optimizer.weight_decay=0.1"])


def ready(module: nn.Module) -> GuardedOptimizer:
    optimizer = GuardedOptimizer(parameter_groups(module, RECIPE))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.create_state(group, parameter)
    return optimizer


def test_each_trained_parameter_is_in_exactly_one_group() -> None:
    toy = Toy(0.0, statistics=True)
    grouped = [p for g in parameter_groups(toy, RECIPE) for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in toy.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})


def test_what_ends_at_no_16_bytes_comes_last_and_shifts_no_other_weight() -> None:
    system = systems.build(make_fiber_recipe(), make_facts())
    shifted = 0
    for group in parameter_groups(system, make_fiber_recipe()):
        offset = 0
        for parameter in group["params"]:
            odd = parameter.numel() % 4 > 0
            assert odd or offset % 4 == 0, group["name"]
            shifted += odd
            offset += parameter.numel()
    assert shifted > 6, "gates and a head of two classes, or nothing is tested"


def test_norms_and_biases_are_not_decayed() -> None:
    toy = Toy(0.0, statistics=True)
    plain = {id(p) for g in parameter_groups(toy, RECIPE) if g["weight_decay"] == 0 for p in g["params"]}
    expected = {n for n, p in toy.named_parameters() if p.requires_grad and p.ndim == 1}
    assert {n for n, p in toy.named_parameters() if id(p) in plain} == expected


def test_a_norm_over_two_dimensions_is_not_decayed() -> None:
    (group,) = parameter_groups(nn.LayerNorm((3, 4)), RECIPE)
    assert group["weight_decay"] == 0 and len(group["params"]) == 2


class Parts(nn.Module):
    """One parameter for each part of a system, and one of the towers."""

    def __init__(self) -> None:
        super().__init__()
        linear = {name: nn.Linear(2, 2) for name in ("image", "text", "cross")}
        contrast = nn.Module()
        contrast.temperature = nn.Parameter(torch.tensor(0.07))
        self.model = nn.ModuleDict(linear)
        self.objectives = nn.ModuleDict({"mlm": nn.Linear(2, 2), "itc": contrast})


@pytest.mark.parametrize(("pretrained", "start"), [(False, None), (True, None), (False, "DIR")])
def test_each_part_has_its_own_rate_and_towers_only_where_they_start_trained(
    pretrained: bool, start: str | None
) -> None:
    factors = {"lr": 1.0, "backbone_lr_factor": 0.1, "fusion_lr_factor": 5.0, "head_lr_factor": 50.0}
    table = SimpleNamespace(
        optimizer=RECIPE.optimizer.model_copy(update=factors),
        model=SimpleNamespace(pretrained=pretrained),
        start=start,
    )
    system = Parts()
    names = {id(p): name for name, p in system.named_parameters()}
    groups = parameter_groups(system, table)  # type: ignore[arg-type]
    found = {names[id(p)]: group["peak_lr"] for group in groups for p in group["params"]}
    tower = 0.1 if pretrained or start else 1.0
    starts = {"model.image": tower, "model.text": tower, "model.cross": 5.0, "objectives.mlm": 50.0}
    for name, factor in found.items():
        expected = next((value for prefix, value in starts.items() if name.startswith(prefix)), 1.0)
        assert factor == expected, name
    optimizer = GuardedOptimizer(groups)
    optimizer.set_lr(0.5)
    assert {g["lr"] / g["peak_lr"] for g in optimizer.param_groups} == {0.5}


def official_groups() -> dict[str, tuple[float, float]]:
    """Returns official name -> (factor of the learning rate, weight decay)."""
    told = json.loads((PARITY / "fiber_param_groups.json").read_text())
    return {
        name: (group["lr"] / told["optimizer"]["lr"], group["weight_decay"])
        for group in told["groups"]
        for name in group["names"]
    }


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"the official groups are not at {PARITY}")
def test_fibers_groups_are_the_official_ones_for_every_parameter() -> None:
    """Every official parameter that the coarse module has is either dead or in the group of ours."""
    shown = recipes.load(
        "pretrain_fiber", ["optimizer.decay=fiber", "model.pretrained=false", "model.captioning=true"]
    )
    with torch.device("meta"):
        system = systems.build(shown, DataFacts(50265, 1, 0, 2, 50264))
    names = {id(p): name for name, p in system.named_parameters()}
    plan = shown.model.fusion.plan
    ours = {}
    for group in parameter_groups(system, shown):
        named = {names[id(p)]: p for p in group["params"]}
        # A fusion's keys and values are one official Linear, so both kinds must be in one group.
        for official in fiber_names.to_official(named, plan):
            ours[official] = (group["peak_lr"] / shown.optimizer.lr, group["weight_decay"])
    theirs = {
        name: value
        for name, value in official_groups().items()
        if fiber_names.why_dead(name, plan) is None and not name.startswith(("vqa_", "nlvr2_"))
    }
    ours = {name: value for name, value in ours.items() if not name.startswith("rank_output.")}
    assert len(theirs) > 600
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n] != pytest.approx(theirs[n])] == []


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"the official groups are not at {PARITY}")
def test_the_tasks_heads_would_be_decayed_as_the_official_code_does() -> None:
    for name, (factor, decay) in official_groups().items():
        if name.startswith(("vqa_", "nlvr2_")):
            ((ours, _),) = fiber_names.to_ours({name: torch.zeros(2)}, ((3, 14, 6),)).items()
            in_norm = ".head.1." in ours
            assert (part_of(ours), factor) == ("head", 5.0)
            assert is_decayed(ours, 1 if in_norm else 2, in_norm, "fiber") == (decay > 0), name


def test_our_decay_is_of_matrices_alone() -> None:
    shown = recipes.load("tiny_fiber")
    system = systems.build(shown, DataFacts(100, 0, 1, 2, 3))
    names = {id(p): name for name, p in system.named_parameters()}
    groups = parameter_groups(system, shown)
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    rest = set(names.values()) - decayed
    assert {dict(system.named_parameters())[name].ndim >= 2 for name in decayed} == {True}
    for end in (".gate", ".temperature", ".bias", "relative_position_bias_table", "image.norm.weight"):
        assert any(name.endswith(end) for name in rest), end
        assert not any(name.endswith(end) for name in decayed), end


@pytest.mark.parametrize(("gradient", "bound"), [(1.0, 0.001), (-1.0, 1.0)])
def test_the_temperature_stays_in_its_bounds_and_nothing_else_is_bounded(gradient, bound) -> None:
    system = Parts()
    optimizer = ready(system)
    optimizer.set_lr(5.0 / RECIPE.optimizer.lr)  # AdamW's first step is 5 long
    for parameter in system.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    for _ in range(3):
        optimizer.step()
        torch.testing.assert_close(system.objectives["itc"].temperature.detach(), torch.tensor(bound))
    assert system.model["cross"].weight.abs().min() > 2


def test_a_forbidden_step_does_not_move_a_temperature_out_of_its_bounds_either() -> None:
    system = Parts()
    optimizer = ready(system)
    with torch.no_grad():
        system.objectives["itc"].temperature.fill_(3.0)
    for parameter in system.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.skip.fill_(1)
    optimizer.step()
    assert system.objectives["itc"].temperature.item() == 3.0


def test_the_update_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizer = ready(ours)
    table = RECIPE.optimizer
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        betas=table.betas,
        eps=table.eps,
    )
    for step in range(5):
        x = torch.randn(7, 5)
        for module in (ours, theirs):
            module.zero_grad()
            module(x).square().sum().backward()
        optimizer.set_lr(0.01 * (step + 1) / table.lr)
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-6, atol=1e-7)


def test_a_forbidden_step_leaves_weights_moments_and_counter() -> None:
    module = nn.Linear(3, 3)
    optimizer = ready(module)
    optimizer.set_lr(0.1 / RECIPE.optimizer.lr)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = [p.detach().clone() for p in module.parameters()]
    states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.skip.fill_(1)
    optimizer.step()
    for parameter, old, state in zip(module.parameters(), before, states, strict=True):
        assert torch.equal(parameter, old)
        assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in state.items())


def test_a_missing_gradient_is_zero_and_still_decays() -> None:
    module = nn.Linear(3, 3, bias=False)
    optimizer = ready(module)
    optimizer.set_lr(0.5 / RECIPE.optimizer.lr)
    before = module.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(module.weight, before * (1 - 0.5 * 0.1))


def test_clipping_reaches_the_limit_and_leaves_small_gradients() -> None:
    gradients = [torch.full((3,), 4.0), torch.full((4,), -2.0)]
    norm = total_norm(gradients)
    torch.testing.assert_close(norm, torch.cat(gradients).norm())
    clip(gradients, norm, 0.5)
    torch.testing.assert_close(total_norm(gradients), torch.tensor(0.5))
    small = [torch.full((3,), 0.01)]
    clip(small, total_norm(small), 0.5)
    assert torch.equal(small[0], torch.full((3,), 0.01))


def test_the_norm_of_a_nan_is_not_finite() -> None:
    assert not total_norm([torch.tensor([1.0, float("nan")]), torch.ones(2)]).isfinite()
    assert not total_norm([torch.tensor([float("inf")])]).isfinite()
