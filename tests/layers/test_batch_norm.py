"""BatchNorm over two ranks is BatchNorm of one process with both ranks' images."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from dsvlp.layers.batch_norm import SyncBatchNorm2d
from tests.engine.processes import run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("batch_norm")
    run("../layers/batch_norm_worker.py", "two", str(folder / "found.json"), world=2, scratch=folder)
    out: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return out


@pytest.mark.parametrize("mode", ["none", "full"])
def test_two_unequal_ranks_have_output_gradients_and_statistics_of_one(found: dict, mode: str) -> None:
    """Recomputed in backward as well, where each batch still counts once."""
    differences = found[mode]
    assert {"output", "images", "0.weight", "1.weight", "4.bias", "4.running_var"} <= differences.keys()
    assert differences["1.num_batches_tracked"] == 0
    assert {name: value for name, value in differences.items() if value > 1e-5} == {}


def test_what_is_bf16_stays_bf16(found: dict) -> None:
    assert found["dtypes"] == ["torch.bfloat16"] * 2


@pytest.mark.parametrize("training", [True, False])
def test_on_one_process_it_is_torchs_own(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = SyncBatchNorm2d(3).train(training), nn.BatchNorm2d(3).train(training)
    maps = torch.randn(4, 3, 5, 5)
    assert torch.equal(ours(maps), theirs(maps))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
