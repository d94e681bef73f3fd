"""A FIBER run from its training under ZeRO-3 to its scores: what it says while it trains, and after."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsvlp import recipe, system
from dsvlp.engine.gates import closed_gates, gate_names, gates
from dsvlp.engine.inference import load_trained
from dsvlp.engine.metrics import read_lines
from tests.batches import make_facts
from tests.engine.processes import environment

SMALL = [
    "data.synthetic.images=48",
    "data.synthetic.image_size=64",
    "data.workers=1",
    "batch.global_pairs=8",
    "batch.micro_pairs=4",
    "optimizer.lr=1e-2",
    "schedule.steps=3",
    "schedule.warmup=0.0",
    "schedule.decay=constant",
    "watch.log_every_steps=1",
    "watch.pictures_every_steps=2",
    "watch.validation_pairs=16",
]


def dsvlp(scratch, *arguments: str) -> str:
    """Returns what the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "dsvlp", *arguments],
        env=environment(scratch, XDG_CACHE_HOME=os.environ.get("XDG_CACHE_HOME", str(scratch / "cache"))),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fiber")


@pytest.fixture(scope="module")
def run(scratch):
    folder = scratch / "run"
    dsvlp(scratch, "train", "tiny_fiber", *SMALL, "engine.zero=zero3", "--nproc", "2", "--run", str(folder))
    return folder


@pytest.fixture(scope="module")
def scored(scratch, run):
    """Returns (what `dsvlp evaluate` printed, its scores)."""
    options = ["--pairs", "24", "--captions", "all", "--all-pairs", "--rerank", "4", "--zero-gates"]
    printed = dsvlp(scratch, "evaluate", str(run), *options, "--nproc", "1")
    return printed, json.loads((run / "scores.json").read_text())


def test_every_log_step_has_the_gates_that_the_checkpoint_has_in_the_end(run):
    trained = gates(load_trained(run).system)
    pairs = len(recipe.load("tiny_fiber").model.fusion.plan)
    assert len(trained) == 2 * pairs
    logged = [line for line in read_lines(run / "metrics.jsonl") if "loss/total" in line]
    assert [line["step"] for line in logged] == [1, 2, 3]
    for name, value in trained.items():
        values = [line[f"gates/{name}"] for line in logged]
        assert values[-1] == pytest.approx(value, abs=1e-7), name
        assert values[0] != 0 and len(set(values)) == 3
    assert all(0 < line["metrics/itc/temperature"] <= 1 for line in logged)
    assert all(0 <= line["metrics/itm/hardness"] <= 1 for line in logged)


def test_tensorboard_has_curves_of_the_gates_and_the_gallery_of_hard_negatives(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"gates/image/0", "gates/text/0", "metrics/itc/temperature"} <= set(events.Tags()["scalars"])
    (drawn,) = events.Images("hard_negatives")
    assert drawn.step == 2 and drawn.height > 64


def test_retrieval_by_both_objectives_stands_with_interval_and_chance(scored):
    printed, scores = scored
    found = scores["retrieval"]
    assert found["reranked"] == 4
    for way in ("itc", "itc+itm", "itm"):
        for captions in ("first", "all"):
            shares = found[f"{way}_{captions}_captions"]
            total = found["images"] if captions == "first" else found["texts"]
            assert shares["IR@1"]["total"] == total and shares["TR@1"]["total"] == found["images"]
            assert shares["IR@1"]["chance"] == pytest.approx(1 / found["images"])
            low, high = shares["IR@1"]["interval_95"]
            assert 0 <= low <= shares["IR@1"]["value"] <= high <= 1
        assert f"retrieval {way}_first_captions TR@1" in printed
    for cut in ("TR@5", "IR@10"):  # the first four stay the first four
        assert found["itc+itm_all_captions"][cut] == found["itc_all_captions"][cut]


def test_closing_the_gates_changes_what_is_fused_and_nothing_else(scored):
    printed, scores = scored
    open_, closed = scores["losses"], scores["zero_gates"]["losses"]
    assert closed["loss/itc"] == pytest.approx(open_["loss/itc"], rel=1e-6)
    assert abs(closed["loss/itm"] - open_["loss/itm"]) > 1e-6
    assert abs(closed["loss/mlm"] - open_["loss/mlm"]) > 1e-6
    name = "itm_accuracy_random_texts"
    assert scores[name]["chance"] == 0.5 and 24 < scores[name]["total"] <= 48
    assert scores["zero_gates"][name]["total"] == scores[name]["total"]
    assert f"zero_gates {name}" in printed and "itm, hard negatives (batch)" in printed
    assert len(scores["gates"]) == 2 * len(recipe.load("tiny_fiber").model.fusion.plan)
    assert "with all gates of the fusion at 0" in printed and "gates: image/0" in printed


def test_the_report_has_the_gates(scratch, run):
    assert "text reads image" in dsvlp(scratch, "report", str(run))


def test_gates_are_what_they_were_after_they_were_closed():
    built = system.build(recipe.load("tiny_fiber", ["model.text.vocabulary=40"]), make_facts())
    names = gate_names(name for name, _ in built.named_parameters())
    with torch.no_grad():
        for number, name in enumerate(names):
            built.get_parameter(name).fill_(number + 1)
    before = gates(built)
    with pytest.raises(KeyboardInterrupt), closed_gates(built):
        assert set(gates(built).values()) == {0.0}
        raise KeyboardInterrupt
    assert gates(built) == before and math.prod(before.values()) > 0


def test_svl_has_no_gates(scratch):
    built = system.build(recipe.load("tiny_svl", ["objectives.segl=false"]), make_facts())
    assert gates(built) == {}
