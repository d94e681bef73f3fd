import json
from pathlib import Path

import pytest

from tests.engine.processes import run


@pytest.mark.parametrize("theme", ["svl", "fiber", "pixelbert"])
def test_zero3_with_recomputation_gives_the_losses_of_zero1(theme: str, tmp_path: Path) -> None:
    out = tmp_path / "losses.json"
    run("../models/zero_worker.py", theme, str(out), world=2, scratch=tmp_path)
    results = json.loads(out.read_text())
    whole, partitioned = results["zero1 none"], results["zero3 full"]
    assert whole[-1]["mlm"] < whole[0]["mlm"]
    for ours, theirs in zip(partitioned, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
