"""Whole systems under ZeRO 1, 2 and 3 on two processes, in one launch."""

import json

import pytest

from tests.engine.processes import run

SYSTEMS = ("svl", "fiber", "pixelbert", "semvlp")

Losses = dict[str, list[dict[str, float]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Losses]:
    folder = tmp_path_factory.mktemp("zero")
    losses = folder / "losses.json"
    run("../models/zero_worker.py", ",".join(SYSTEMS), str(losses), world=2, scratch=folder, seconds=900)
    out: dict[str, Losses] = json.loads(losses.read_text())
    return out


@pytest.mark.parametrize("system", SYSTEMS)
def test_zero2_and_zero3_with_recomputation_give_the_losses_of_zero1(
    system: str, found: dict[str, Losses]
) -> None:
    """SemVLP's steps take turns between its modes: every second one leaves out the cross-attention."""
    whole = found[system]["zero1"]
    assert whole[2]["mlm"] < whole[0]["mlm"] and whole[3]["mlm"] < whole[1]["mlm"]
    for stage in ("zero2", "zero3"):
        for ours, theirs in zip(found[system][stage], whole, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
