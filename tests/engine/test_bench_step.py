"""Where a step's time goes: one tiny run of the whole command, and the arithmetic on made-up measurements."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsvlp import recipe
from dsvlp.accounting import flops
from dsvlp.accounting.layout import Layout
from dsvlp.engine.bench_figures import GROWTH, Measured, Repeat, figures, memory_by_formula
from dsvlp.engine.bench_parts import FLOOR, PART, Marked, Rates
from dsvlp.engine.bench_parts import rows as part_rows
from dsvlp.engine.dsconfig import load_layout
from dsvlp.engine.parts import TOWERS, backward_of
from dsvlp.types import DataFacts
from tests.engine.processes import environment

TINY = [
    "model.image_size=32",
    "model.image.layers=1",
    "model.text.layers=1",
    "model.cross_layers=1",
    "model.visual_queries=4",
    "objectives.segl=false",
    "objectives.spl={}",
    "data.synthetic.images=24",
    "data.synthetic.image_size=64",
    "data.workers=1",
    "batch.global_pairs=8",
    "batch.micro_pairs=4",
]
FACTS = DataFacts(vocabulary=100, pad_id=0, cls_id=1, sep_id=2, mask_id=3)


def repeat(wall: float, forward: float, tokens: float = 12.0) -> Repeat:
    parts = {"data": 0.1, "forward": forward}
    return Repeat(parts, {"spl/waiting": 0.01}, wall, 2 * wall, tokens, memory_gib=wall, growth_gib=wall / 2)


def rows(recipe_: recipe.Recipe, *ranks: Measured) -> dict[str, list[float]]:
    return {figure.name: figure.values for figure in figures(recipe_, FACTS, ranks)}


def bench(scratch: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Runs `dsvlp bench step tiny_svl` on one process; returns the JSON that it wrote and what it printed."""
    saved = scratch / "saved.json"
    command = [sys.executable, "-m", "dsvlp", "bench", "step", "tiny_svl", *arguments, "--nproc", "1"]
    done = subprocess.run(
        [*command, "--json", str(saved)],
        env=environment(scratch, XDG_CACHE_HOME=str(scratch / "cache")),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(saved.read_text()), done.stdout


def test_real_steps_are_measured_written_and_compared_with_themselves(tmp_path):
    lengths = ["--steps", "2", "--warmup", "1", "--repeats", "9", "--parts"]
    result, said = bench(tmp_path, *TINY, *lengths)
    found = {figure["name"]: figure for figure in result["figures"]}
    parts = ("data wait", "prepare", "forward", "backward", "optimizer step", "other")
    whole = found["whole step"]["values"]
    assert len(whole) == 9
    for index, wall in enumerate(whole):
        assert sum(found[part]["values"][index] for part in parts) == pytest.approx(wall)
    for part in ("prepare", "forward", "backward", "optimizer step"):
        assert found[part]["lowest"] > 0
    matching = found["SPL's matching, all threads, meanwhile"]["median"]
    waiting = found["waiting for SPL's matching, within forward"]["median"]
    assert matching > 0 and 0 < waiting < found["forward"]["median"]
    assert found["pairs"]["median"] == pytest.approx(8 / statistics.median(whole) * 1e3)
    share = found["MFU of the measured fp32 matmul rate, real tokens"]["median"]
    assert 0 < share < 100
    assert 3 < found["real text length"]["median"] < 24
    assert result["settings"]["accumulation"] == 2
    states, rest, whole = (
        found[f"memory by formula: {name}"]["median"]
        for name in ("weights, gradients, optimizer", "activations, copies, batches", "all")
    )
    assert states > 0 and rest > 0 and whole == pytest.approx(states + rest)
    for part in TOWERS:
        for name in (part, backward_of(part)):
            assert 0 < found[FLOOR + name]["median"] < found[PART + name]["median"], name
    assert found[FLOOR + "optimizer"]["median"] > 0 and found[PART + "optimizer"]["median"] > 0
    assert 0 <= found["unexplained, share of the step"]["lowest"] < 5
    assert "furthest above their floors" in said
    assert "pairs/s" in said and f"torch {result['versions']['torch']}" in said


def test_forward_and_backward_alone_are_compared_in_turns_with_counted_flops_and_memory(tmp_path):
    overrides = [part for part in TINY if "queries" not in part and "spl" not in part]
    lengths = ["--steps", "1", "--warmup", "1", "--repeats", "1", "--count-flops"]
    variants = ["--no-update", "--against", "model.image.layers=3"]
    result, _ = bench(tmp_path, *overrides, *variants, *lengths)
    one, three = (
        {figure["name"]: figure["median"] for figure in variant["figures"]}
        for variant in result["variants"].values()
    )
    for found in (one, three):
        assert 0 < found[GROWTH] < found["peak memory, resident, largest process"]
        full = next(value for name, value in found.items() if name.startswith("model FLOPs a pair, 2"))
        assert found["executed FLOPs a pair, counted"] == pytest.approx(full, rel=0.1)
    assert three["executed FLOPs a pair, counted"] > one["executed FLOPs a pair, counted"]


def test_seconds_are_means_over_the_ranks_and_the_rate_is_that_of_the_slowest():
    tiny = recipe.load("tiny_svl")
    one = Measured([repeat(1.0, 0.5), repeat(2.0, 0.7)], 1e12, "matmul", "cpu")
    two = Measured([repeat(4.0, 0.7), repeat(2.0, 0.9)], 1e12, "matmul", "cpu")
    found = rows(tiny, one, two)
    assert found["forward"] == pytest.approx([600, 800])
    assert found["whole step"] == pytest.approx([4000, 2000])
    assert found["pairs"] == pytest.approx([64 / 4, 64 / 2])
    assert found["peak memory, resident, largest process"] == [4.0, 2.0]
    assert found["data wait, share of the step"] == pytest.approx([2.5, 5.0])


def test_without_updates_the_formula_holds_weights_and_gradients_alone():
    tiny = recipe.load("tiny_svl", ["engine.zero=zero0"])
    layout = Layout.from_json("zero0", load_layout("zero0"))
    one = [Measured([repeat(1.0, 0.5)], 1e12, "matmul", "cpu")]
    numbers = flops.parameters(tiny, FACTS)
    for update, bytes_each in ((True, 4 + 4 + 8), (False, 4 + 4)):
        states, rest, _ = (row.values for row in memory_by_formula(tiny, FACTS, layout, one, update))
        assert states == pytest.approx([bytes_each * numbers / 2**30])
        assert rest == pytest.approx(memory_by_formula(tiny, FACTS, layout, one, True)[1].values)


def test_mfu_is_a_devices_share_on_real_tokens_and_at_full_length():
    tiny = recipe.load("tiny_svl")
    ranks = [Measured([repeat(2.0, 0.5, tokens=10.0)], 989e12, "peak", "cuda")] * 2
    found = rows(tiny, *ranks)
    real, full = flops.train_flops(tiny, text_tokens=10.0, facts=FACTS), flops.train_flops(tiny, facts=FACTS)
    rate = 64 / 2.0 / 2
    assert found["achieved by a device, real tokens"] == pytest.approx([rate * real / 1e9])
    assert found["MFU of the data sheet's peak, real tokens"] == pytest.approx([100 * rate * real / 989e12])
    name = f"MFU of the data sheet's peak, {tiny.model.text.max_length} tokens"
    assert found[name] == pytest.approx([100 * rate * full / 989e12])
    assert "peak GPU memory, allocated, largest process" in found


def test_parts_that_overlap_on_a_gpu_leave_nothing_negative():
    busy = Measured([repeat(0.55, 0.5)], 1e12, "peak", "cuda")
    assert rows(recipe.load("tiny_svl"), busy)["other"] == [0.0]


def test_the_figures_need_no_torch():
    modules = "dsvlp.engine.bench_scaling, dsvlp.cli.bench_step, dsvlp.cli.bench_inference"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], timeout=60, env=os.environ, check=False).returncode == 0
    )


def test_floors_are_the_formulas_work_over_the_measured_rates():
    tiny = recipe.load("tiny_svl")
    parts = {"image tower": 1.0, "fusion": 1.0, "heads, backward": 1.0, "step": 1.0, "communication": 1.0}
    repeat_ = Repeat({**parts, "prepare": 0.5}, {}, 6.0, 6.0, 12.0, 1.0, 1.0)
    ranks = [Marked([repeat_], Rates(1e9, 1e9, 2e9), sent=1e6, updated=100)] * 2
    found = {figure.name: figure.values[0] for figure in part_rows(tiny, FACTS, ranks)}
    costs = flops.components(tiny, text_tokens=12.0, facts=FACTS)
    pairs = 64 / 2
    cross = costs["cross-modality layers"].forward + costs["decoder of queries"].forward
    assert found["floor/image tower"] == pytest.approx(1e3 * pairs * costs["image tower"].forward / 1e9)
    assert found["floor/fusion"] == pytest.approx(1e3 * pairs * cross / 1e9)
    assert found["floor/heads, backward"] == pytest.approx(1e3 * 2 * pairs * costs["heads"].forward / 1e9)
    assert found["floor/optimizer"] == pytest.approx(1e3 * 28 * 100 / 1e9)
    assert found["floor/communication"] == pytest.approx(1e3 * 1e6 / 2e9)
    assert found["part/prepare: copy, corrupt, count"] == 500 and "floor/prepare" not in found
    assert found["part/unexplained"] == pytest.approx(500)
    assert found["unexplained, share of the step"] == pytest.approx(100 * 0.5 / 6)
