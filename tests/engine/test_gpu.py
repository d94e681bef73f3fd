"""Training on one GPU: every ZeRO stage, killed and resumed, and the peak of memory beside its formula.

The tests of systems, benches and the loop use a GPU where there is one; here is what only it can show.
"""

import pytest
import torch

from dsvlp.data.decoders.open import why_no_gpu
from dsvlp.engine.bench_figures import GROWTH
from dsvlp.launch import local
from tests.engine.test_bench_step import bench
from tests.engine.test_resume import DROPOUT, QUERIES, environment, hashes, train  # noqa: F401, a fixture
from tests.engine.test_train import numbers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"no GPU: {why_no_gpu()}"),
]
STAGES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_every_stage_a_killed_run_ends_as_the_whole_one_bit_for_bit_and_all_stages_agree(
    precision,
    tmp_path,
    environment,  # noqa: F811, the fixture
    monkeypatch,
):
    monkeypatch.setattr(local, "GRACE_SECONDS", 2.0)
    keys = [*DROPOUT, *QUERIES, "engine.deterministic=true", f"engine.precision={precision}"]
    losses = {}
    for stage in STAGES:
        whole, cut = tmp_path / f"{stage}-whole", tmp_path / f"{stage}-cut"
        here = [*keys, f"engine.zero={stage}"]
        assert train(environment, 1, (whole, "", here), (cut, "kill:5:0", here)) == 128 + 9
        assert train(environment, 1, (cut, "", here)) == 0
        assert hashes(whole, 6) == hashes(cut, 6), stage
        assert numbers(whole) == numbers(cut), stage
        losses[stage] = [line["loss/total"] for line in numbers(whole) if "loss/total" in line]
    for stage in STAGES:
        assert losses[stage] == pytest.approx(losses["zero0"], rel=1e-5 if precision == "fp32" else 2e-2)


def test_the_peak_of_a_step_is_what_the_formula_says(tmp_path):
    """Large enough that weights and activations are most of what is allocated."""
    sizes = ["model.image_size=128", "model.image.width=512", "model.text.width=512", "batch.micro_pairs=64"]
    found, _ = bench(tmp_path, *sizes, "--steps", "2", "--warmup", "1", "--repeats", "1")
    rows = {figure["name"]: figure["median"] for figure in found["figures"]}
    assert rows["memory by formula: all"] == pytest.approx(rows[GROWTH], rel=0.25)
