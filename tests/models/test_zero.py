import json
from pathlib import Path

import pytest

from tests.engine.processes import run


def test_partitioned_parameters_give_the_losses_of_whole_ones(tmp_path: Path) -> None:
    out = tmp_path / "losses.json"
    run("../models/zero_worker.py", "svl", str(out), world=2, scratch=tmp_path)
    results = json.loads(out.read_text())
    whole = results.pop("zero1 none")
    assert whole[-1]["mlm"] < whole[0]["mlm"]
    assert len(results) == 2
    for layout, losses in results.items():
        for ours, theirs in zip(losses, whole, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5), layout
