"""setup.cfg against the tree; and a wheel that works without the checkout."""

import configparser
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# Of the checkout's root: folder -> package once installed; dsvlp.slurm is a module.
SHIPPED_FOLDERS = {"ds_configs": "dsvlp.ds_configs", "slurm": "dsvlp.slurm_scripts"}


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def words(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_every_package_is_listed(setup):
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "dsvlp").rglob("__init__.py")
    }
    on_disk |= set(SHIPPED_FOLDERS.values())
    assert set(words(setup["options"]["packages"])) == on_disk


def test_every_requirement_that_brings_a_framework_has_an_upper_bound(setup):
    """Without one, the newest torchvision brings the newest torch and gigabytes of CUDA."""
    bounded = {"torch", "torchvision", "deepspeed", "transformers", "timm", "ffcv"}
    requirements = {r.name: r for r in map(Requirement, words(setup["options"]["install_requires"]))}
    for name in bounded:
        operators = {part.operator for part in requirements[name].specifier}
        assert operators & {"<", "=="}, f"{requirements[name]} has no upper bound"


def test_requirements_are_installed_within_their_bounds(setup):
    for text in words(setup["options"]["install_requires"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), text


def test_a_wheel_works_without_the_checkout(tmp_path):
    copy, target = tmp_path / "source", tmp_path / "site"
    ignore = shutil.ignore_patterns(".venv", ".git", "runs", "*.egg-info", "build", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(copy)], check=True, timeout=300)
    shutil.rmtree(copy)

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(target) in run("-c", "import dsvlp; print(dsvlp.__file__)")
    assert "tiny_svl" in run("-m", "dsvlp", "recipes")
    layouts = run(
        "-c", "from dsvlp.engine import dsconfig as d; print([d.load_layout(f'zero{i}') for i in range(4)])"
    )
    assert "stage" in layouts
    assert "partitions" in run("-c", "import dsvlp.slurm; print(dir(dsvlp.slurm))")
    assert (target / "dsvlp/slurm_scripts/pretrain.sh").is_file()
    assert (target / "bin" / "dsvlp").is_file()
