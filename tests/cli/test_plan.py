"""`dsvlp plan` on a login node: without torch, quickly, in words."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from dsvlp.cli.plan import command, mean_row_bytes
from dsvlp.data import manifest
from dsvlp.errors import DsvlpError

ROOT = Path(__file__).parents[2]


def printed(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_a_login_node_needs_no_torch_and_little_time():
    script = """
import sys, time
sys.modules["torch"] = sys.modules["numpy"] = None
from dsvlp.cli.main import main
main(["plan", "pretrain_fiber", "--nodes", "4", "--gpus", "8", "--gpu", "h200", "--time-limit", "24"])
"""
    began = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "GPU-h" in done.stdout and time.process_time() - began < 1


@pytest.mark.parametrize(
    ("recipe", "gpus"),
    [
        ("pretrain_svl", 1),
        ("pretrain_fiber", 8),
        ("pretrain_meter", 16),
        ("pretrain_pixelbert", 16),
        ("pretrain_semvlp", 4),
        ("tiny_svl", 2),
    ],
)
def test_a_plan_names_stages_hours_and_that_it_is_arithmetic(recipe, gpus):
    out = printed(recipe, "--gpus", str(gpus), "--gpu", "h200")
    assert all(
        word in out for word in ("zero0", "zero3_offload", "GPU-h", "Daly", "Arithmetic, not a measure")
    )


def test_a_plan_says_how_many_images_the_pairs_have():
    out = printed("pretrain_pixelbert_grouped", "--gpus", "8", "--gpu", "h200")
    assert "the 4,096 pairs of a step have 1,024 images" in out


def test_what_does_not_fit_says_what_would_and_ends_with_1():
    out = printed("pretrain_fiber", "--gpus", "2", "--gpu", "a10", code=1)
    assert "! zero1 needs" in out and "choose " in out and " GPUs" in out.splitlines()[-1]


def test_a_plan_is_written_as_json(tmp_path):
    printed("pretrain_svl", "--gpus", "8", "--gpu", "h200", "--json", str(tmp_path / "plan.json"))
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["speed"]["gpu_hours"] > 0 and found["cluster"]["device"]["name"] == "H200"


def test_an_unknown_card_is_refused_with_the_known_ones():
    with pytest.raises(DsvlpError, match=r"no GPU is called 'b300'.*h200.*v100"):
        printed("pretrain_svl", "--gpus", "8", "--gpu", "b300")


def test_a_file_without_a_measurement_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    for name in ("other.json", "absent.json"):
        with pytest.raises(DsvlpError, match=r"holds no result of `dsvlp bench step`"):
            printed("pretrain_svl", "--gpus", "8", "--gpu", "h200", "--measured", str(tmp_path / name))


def test_bytes_of_an_image_are_the_rows_of_the_data_that_is_here(tmp_path):
    from dsvlp import recipe

    files = {"rows-00000.beton": manifest.FileRecord(5000, ()), "texts.bin": manifest.FileRecord(99, ())}
    manifest.Manifest(
        "csv", "", 10, 20, 20, (10,), (), 0, 0, (), None, None, manifest.Tally(), manifest.Tally(), files
    ).save(tmp_path)
    here = recipe.load("pretrain_svl", [f'data.train=[{{path="{tmp_path}"}},{{path="/absent"}}]'])
    assert mean_row_bytes(here) == 500
    assert mean_row_bytes(recipe.load("pretrain_svl")) is None
