import json
from pathlib import Path

import pytest

from dsvlp import config, recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.json").write_text(json.dumps(config.dump(recipe.load("tiny_svl"))))
    lines = [
        {"step": step, "samples": 64 * step, "device_seconds": 2.0 * step}
        | {"loss/mlm": 4.0 / step, "time/data": 0.1, "time/forward": 0.3, "optimizer/lr": 1e-3}
        for step in (1, 2, 3)
    ]
    lines[-1] |= {"loss/mlm": "nan", "validation/loss/mlm": 2.5, "validation/constant/mlm": 3.2}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "sa'
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"device": "cpu", "processes": 2}))
    return tmp_path
