"""`dsvlp bench inference`: real requests of tiny systems, and the arithmetic of the rows."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsvlp import recipe, system
from dsvlp.engine import bench_inference as bench
from dsvlp.engine.bench_extraction import Extraction
from dsvlp.engine.bench_inference import Lengths
from dsvlp.engine.inference import Inference
from dsvlp.errors import RecipeError
from tests.regions.pictures import random_detr

CASES = [
    ("tiny_svl", []),
    ("tiny_svl", ["model.visual_queries=4", "objectives.segl=false", "objectives.spl={}"]),
    ("tiny_fiber", []),
    ("tiny_pixelbert", ["model.pixels=2", "model.image_size=96", "model.longest_side=160"]),
    ("tiny_semvlp", []),
    ("tiny_semvlp", ["model.inference=single"]),
]


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_each_batch_and_request_is_measured_and_the_whole_is_their_sum(name, overrides):
    found = bench.bench(recipe.load(name, overrides), Lengths((1, 3), 0.0, 2))
    rows = {figure["name"]: figure["values"] for figure in found["figures"]}
    for size in (1, 3):
        parts = [rows[f"batch {size}: {part}"] for part in bench.PARTS]
        assert all(value > 0 for part in parts for value in part)
        assert rows[f"batch {size}: the whole pair"] == pytest.approx(
            [sum(p) for p in zip(*parts, strict=True)]
        )
        assert rows[f"batch {size}: pairs"] == pytest.approx(
            [1e3 / value for value in rows[f"batch {size}: the whole pair"]]
        )
    assert found["bench"] == "inference" and found["settings"]["text_tokens"] == 20


def test_making_the_objects_is_measured_beside_it_and_refused_for_pixels(tmp_path):
    detector = str(random_detr(tmp_path / "tiny"))
    lengths = Lengths((1, 2), 0.0, 2, extraction=Extraction(detector, "test_resnet"))
    found = bench.bench(recipe.load("tiny_semvlp", []), lengths)
    rows = {figure["name"]: figure["values"] for figure in found["figures"]}
    for size in (1, 2):
        parts = [rows[f"batch {size}: {part}"] for part in (bench.EXTRACT, "the whole pair")]
        assert all(value > 0 for value in parts[0])
        both = [sum(pair) for pair in zip(*parts, strict=True)]
        assert rows[f"batch {size}: the whole pair, its objects made"] == pytest.approx(both)
    assert found["settings"]["detector"] == detector
    with pytest.raises(RecipeError, match=r"--detector .* reads pixels.*Leave --detector out"):
        bench.bench(recipe.load("tiny_svl", []), lengths)


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_the_formula_is_what_the_requests_execute(name, overrides):
    loaded = recipe.load(name, overrides)
    made = system.build(loaded, bench.facts(loaded)).requires_grad_(False)  # the counter looks for gradients
    inference = Inference(made, "fp32", torch.device("cpu"))
    calls = bench._calls(inference, loaded, 2, 12, torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for call in calls.values():
            call()
    assert counter.get_total_flops() / 2 == pytest.approx(bench.forward_flops(loaded, 12), rel=0.02)
