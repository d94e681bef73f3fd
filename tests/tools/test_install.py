"""The installer's behaviour on machines that lack something, with stand-ins for the system's programs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without .venv, and a folder `bin` whose programs come first."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    return tmp_path


def stand_in(checkout: Path, name: str, body: str) -> None:
    path = checkout / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def bash(checkout: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",  # the scripts work from any directory
        env={**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
    )


def test_without_root_the_exact_command_is_printed(checkout):
    stand_in(checkout, "id", "echo 1000")
    stand_in(checkout, "pkg-config", "exit 1")
    done = bash(checkout, f"bash {checkout}/tools/quickstart.sh")
    assert done.returncode == 1
    assert "sudo apt-get install -y libopencv-dev libturbojpeg0-dev" in done.stderr
    assert "conda-forge" in done.stderr
    assert not (checkout / ".venv").exists()


def test_root_installs_what_is_missing(checkout):
    stand_in(checkout, "id", "echo 0")
    stand_in(checkout, "pkg-config", "exit 1")
    stand_in(checkout, "apt-get", f'echo "$@" >> {checkout}/apt.log')
    stand_in(checkout, "python3", "exit 1")
    done = bash(
        checkout, f"source {checkout}/tools/install.sh; install_system $(command -v python3.11 || true)"
    )
    assert done.returncode == 0, done.stderr
    update, install = (checkout / "apt.log").read_text().splitlines()
    assert update.startswith("update")
    assert "libopencv-dev" in install and "libturbojpeg0-dev" in install


def test_a_machine_without_a_fitting_python_is_told_which(checkout):
    stand_in(checkout, "id", "echo 1000")
    done = bash(checkout, f"PYTHON=/bin/false bash {checkout}/tools/test.sh")
    assert done.returncode == 1
    assert "python3" in done.stderr and "Traceback" not in done.stderr


def test_every_failing_step_ends_with_what_to_do(checkout):
    done = bash(
        checkout, f'source {checkout}/tools/install.sh; step "drinking tea" "Boil water."; false; echo on'
    )
    assert done.returncode == 1 and "on\n" not in done.stdout
    assert "drinking tea did not work (exit code 1). Boil water." in done.stderr


def test_requirements_come_from_setup_cfg_with_their_bounds(checkout):
    done = bash(checkout, f"source {checkout}/tools/install.sh; requirement torch torchvision ffcv")
    lines = done.stdout.split()
    assert [line.split("=")[0].rstrip("<>") for line in lines] == ["torch", "torchvision", "ffcv"]
    assert lines[0].startswith("torch>=") and ",<" in lines[0]


def test_a_finished_installation_is_not_repeated(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    stand_in(checkout, "pkg-config", "exit 1")
    shutil.copy("/bin/true", checkout / ".venv/bin/python")
    key = 'echo "$ROOT $(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | sha256sum)"'
    script = f"({key}) > $VENV/.dsvlp-test; install base; install test; echo done"
    done = bash(checkout, f"source {checkout}/tools/install.sh; {script}")
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("name", ["install.sh", "quickstart.sh", "test.sh"])
def test_scripts_are_valid(name):
    subprocess.run(["bash", "-n", str(ROOT / "tools" / name)], check=True, timeout=20)
