"""A training's first weights from an export: what is taken, resized, left out and refused."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsvlp.data.text import train_wordpiece
from dsvlp.engine import start
from dsvlp.engine.exported import MANIFEST, WEIGHTS, digest, start_of
from dsvlp.engine.inference import load_trained, named_tensors
from dsvlp.errors import CheckpointError, RecipeError
from dsvlp.recipe import Recipe
from dsvlp.system import System, TrainRequest, build
from dsvlp.types import DataFacts, LabelTable
from tests.batches import make_batch, make_facts, make_fiber_recipe, make_recipe, make_semvlp_recipe
from tests.engine.exports import tokenizer, write_export
from tests.engine.processes import ROOT, environment

TABLE = "relative_position_bias_table"
QUEUE = ("objectives.itc.queue=6", "objectives.itm.negatives=queue")
SVL = {
    "vit": (),
    "queries": ("model.visual_queries=4", "objectives.spl={}"),
    "resnet": ('model.image={kind="resnet",name="resnet10t"}', "model.image_size=64"),
}


def begun(recipe: Recipe, folder: Path, facts: DataFacts | None = None) -> System:
    """A new system of a recipe that starts from a folder."""
    system = build(recipe, facts or make_facts())
    exported = start_of(recipe.model_copy(update={"start": str(folder)}))
    assert exported is not None
    start.begin(system, exported, facts or make_facts(), tokenizer())
    return system


def differing(system: System, weights: dict[str, Tensor]) -> set[str]:
    return {
        name
        for name, tensor in named_tensors(system).items()
        if name not in weights or not torch.equal(tensor, weights[name])
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_export(make_fiber_recipe(*QUEUE), tmp_path_factory.mktemp("start") / "fiber")


def test_every_weight_is_the_starts(folder):
    assert not differing(begun(make_fiber_recipe("seed=3"), folder), load_file(folder / WEIGHTS))


def test_another_image_size_resizes_the_window_tables_alone(folder):
    system, weights = begun(make_fiber_recipe("model.image_size=96"), folder), load_file(folder / WEIGHTS)
    found = differing(system, weights)
    assert found and all(name.startswith("model.image.") and name.endswith(TABLE) for name in found)
    for name in found:
        old, new = weights[name], system.get_parameter(name)
        grid = old.T.unflatten(1, (3, 3))[None]
        expected = F.interpolate(grid, size=(5, 5), mode="bicubic", align_corners=False)[0].flatten(1).T
        torch.testing.assert_close(new, expected)
    losses = system(TrainRequest(system.prepare(make_batch(partners=False, image_size=96))))
    assert all(loss.sum.isfinite() for loss in losses.values())


def test_queue_and_pool_are_the_new_runs_own(folder):
    system = begun(make_fiber_recipe("objectives.itc.queue=10", "objectives.itm.negatives=queue"), folder)
    queue, pool = system.objectives["itc"].queue, system.objectives["itm"].pool
    assert len(queue.rows) == 10 and (queue.rows == -1).all() and (pool.samples == -1).all()


def test_every_buffer_of_an_objective_is_known_as_what_lasts_between_steps(folder):
    system = build(make_fiber_recipe(*QUEUE), make_facts())
    names = [name for name, _ in system.named_buffers() if name.startswith("objectives.")]
    assert names and all(name.startswith(start.BETWEEN_STEPS) for name in names)


@pytest.mark.parametrize("kind", SVL)
@pytest.mark.parametrize("size", ["same", "larger"])
def test_svl_starts_too_its_grids_positions_resized(kind, size, tmp_path):
    there = make_recipe(*SVL[kind])
    pixels = there.model.image_size * (1 if size == "same" else 2)
    write_export(there, tmp_path / "svl")
    system = begun(make_recipe(*SVL[kind], f"model.image_size={pixels}", "seed=3"), tmp_path / "svl")
    weights = load_file(tmp_path / "svl" / WEIGHTS)
    found = differing(system, weights)
    if size == "same":
        assert not found
        return
    assert found and all(name.endswith(("pos_embed", "positions.table")) for name in found)
    for name in found:
        width, side = weights[name].shape[2], round(weights[name].shape[1] ** 0.5)
        grid = weights[name].transpose(1, 2).unflatten(2, (side, side))
        resized = F.interpolate(grid, scale_factor=2, mode="bicubic", antialias=True, align_corners=False)
        expected = resized.flatten(2).transpose(1, 2)
        torch.testing.assert_close(named_tensors(system)[name], expected, msg=name)
        assert expected.shape == (1, 4 * side**2, width)


def test_objectives_on_one_side_alone_are_named(folder, caplog):
    with caplog.at_level(logging.INFO):
        system = begun(make_fiber_recipe("objectives.itm=false"), folder)
    assert not differing(system, load_file(folder / WEIGHTS))
    said = caplog.text
    assert "objectives taken: itc, mlm" in said
    assert "objectives.itm is not taken: the recipe has no such objective" in said


def test_an_objective_of_other_shapes_is_new_as_a_whole(folder, caplog):
    recipe = make_fiber_recipe("objectives.mlm.tied=true", "seed=3")
    system = begun(recipe, folder)
    names = {name for name in named_tensors(system) if name.startswith("objectives.mlm.")}
    assert differing(system, load_file(folder / WEIGHTS)) == names
    assert "objectives.mlm is not taken: objectives.mlm.decoder.weight has another shape or no" in caplog.text
    fresh = named_tensors(build(recipe, make_facts()))
    assert all(torch.equal(named_tensors(system)[name], fresh[name]) for name in names)


def test_a_head_for_other_classes_is_new_even_where_their_number_is_the_same(tmp_path, caplog):
    other = replace(make_facts(), segmentation=LabelTable("others", (1, 2, 3, 4), ("a", "b", "c", "d")))
    write_export(make_recipe(), tmp_path / "svl", other)
    system = begun(make_recipe("seed=3"), tmp_path / "svl")
    found = differing(system, load_file(tmp_path / "svl" / WEIGHTS))
    assert found == {name for name in named_tensors(system) if name.startswith("objectives.segl.")}
    assert "objectives.segl is not taken: the data's table of segmentation is another" in caplog.text


def altered(folder: Path, to: Path, change) -> Path:
    """A copy of an export whose weights went through `change`, with a true digest."""
    shutil.copytree(folder, to)
    save_file(change(load_file(folder / WEIGHTS)), to / WEIGHTS)
    told = json.loads((to / MANIFEST).read_text())
    (to / MANIFEST).write_text(json.dumps(told | {"sha256": digest(to / WEIGHTS)}))
    return to


GATE = "model.fusion.0.image.gate"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: {k: v for k, v in w.items() if k != GATE}, rf"{GATE}: absent in the file, \(1,\) in the"),
        (
            lambda w: w | {"model.more": torch.ones(2)},
            r"model\.more: \(2,\) in the file, absent in the system",
        ),
        (lambda w: w | {GATE: torch.ones(3)}, rf"{GATE}: \(3,\) in the file, \(1,\) in the system"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_model_that_is_not_the_starts_is_named_and_nothing_is_half_loaded(folder, tmp_path, change, says):
    copy = altered(folder, tmp_path / "copy", change)
    system = build(make_fiber_recipe(), make_facts())
    before = {name: tensor.clone() for name, tensor in named_tensors(system).items()}
    exported = start_of(make_fiber_recipe(f"start={copy}"))
    with pytest.raises(CheckpointError, match=says):
        start.begin(system, exported, make_facts(), tokenizer())
    assert not differing(system, before)


def test_changed_bytes_and_another_vocabulary_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        begun(make_fiber_recipe(), copy)
    system, exported = (
        build(make_fiber_recipe(), make_facts()),
        start_of(make_fiber_recipe(f"start={folder}")),
    )
    with pytest.raises(RecipeError, match=r"not the one that .* Set data\.tokenizer=.*tokenizer"):
        start.begin(system, exported, make_facts(), train_wordpiece(["other words"], 40))


@pytest.mark.parametrize(
    ("theirs", "ours", "copied"),
    [
        (["model.mode_schedule=single"], [], True),
        (["model.mode_schedule=single"], ["model.cross_start=random"], False),
        (["model.mode_schedule=halves"], [], False),
        (["model.mode_schedule=two"], [], False),
        (["model.mode_schedule=single", "start=of_both"], [], False),  # may have come with trained ones
    ],
)
def test_cross_attention_that_was_never_trained_is_copied_from_the_starts_self_attention(
    theirs, ours, copied, tmp_path
):
    write_export(make_semvlp_recipe(*theirs), tmp_path / "semvlp")
    system = begun(make_semvlp_recipe("seed=3", *ours), tmp_path / "semvlp")
    found = differing(system, load_file(tmp_path / "semvlp" / WEIGHTS))
    cross = {name for name in named_tensors(system) if name.startswith("model.cross.")}
    assert cross and found == (cross if copied else set())
    if copied:
        for layer, block in zip(system.model.text.encoder.layer[1:], system.model.cross, strict=True):
            assert torch.equal(block.attention.query.weight, layer.attention.self.query.weight)
            assert torch.equal(block.norm.bias, layer.attention.output.LayerNorm.bias)


SMALL = [
    "data.synthetic.images=24",
    "data.synthetic.image_size=64",
    "data.workers=1",
    "watch.validation_pairs=8",
    "batch.global_pairs=8",
    "batch.micro_pairs=8",
    "schedule.warmup=0.0",
    "schedule.decay=constant",
    "objectives.itc.queue=16",
]


def dsvlp(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    cache = os.environ.get("XDG_CACHE_HOME", str(scratch / "cache"))
    return subprocess.run(
        [sys.executable, "-m", "dsvlp", *arguments],
        env=environment(scratch, XDG_CACHE_HOME=cache),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_a_run_starts_from_anothers_export_at_another_size_once_and_goes_on_without_it(tmp_path):
    first, out, second = (tmp_path / name for name in ("first", "out", "second"))

    def train(run: Path, *more: str) -> str:
        done = dsvlp(tmp_path, "train", "tiny_fiber", *SMALL, *more, "--nproc", "1", "--run", str(run))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    train(first, "schedule.steps=2", "optimizer.lr=1e-2")
    assert dsvlp(tmp_path, "export", str(first), "--out", str(out)).returncode == 0
    again = [f"start={out}", "model.image_size=64", "optimizer.lr=1e-30"]
    train(second, *again, "schedule.steps=1")
    weights, found = load_file(out / WEIGHTS), load_trained(second).system
    tables = {name for name in weights if name.endswith(TABLE)}
    buffers = {name for name in weights if name.startswith(start.BETWEEN_STEPS)}
    learnt = weights.keys() - tables - buffers
    moved = {n for n in learnt if not torch.allclose(named_tensors(found)[n], weights[n], rtol=0, atol=1e-20)}
    assert len(tables) == 8 and not moved
    assert (found.objectives["itc"].queue.rows >= 0).sum() == 8  # its own first step's

    told = json.loads((second / "manifest.json").read_text())["start"]
    assert told == {"folder": str(out), "step": 2, "sha256": digest(out / WEIGHTS)}
    shutil.rmtree(out)
    said = train(second, *again, "schedule.steps=2", "--override")
    assert "resumed step 1" in said
    assert json.loads((second / "manifest.json").read_text())["start"] == told
    third = ["batch.micro_pairs=4", "--nproc", "2", "--run", str(tmp_path / "third")]
    refused = dsvlp(tmp_path, "train", "tiny_fiber", *SMALL, *again, *third)
    assert refused.returncode != 0 and "holds no export.json" in refused.stderr + refused.stdout
    assert not (tmp_path / "third").exists()
