"""The offline bundle: what it refuses, what its check says on a wrong machine, and a run on a bare one."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def bash(words: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", words],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd="/",
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--python 3.9", "'3.9'; dsvlp runs on 3.11 and 3.12"),
        ("--pyhton 3.12", "unknown argument '--pyhton'. Known: --python"),
        ("--out", "--out needs a file name"),
    ],
)
def test_wrong_arguments_are_named_beside_the_right_ones(arguments, words):
    done = bash(f"bash {ROOT}/tools/bundle.sh {arguments}", PYTHON=sys.executable)
    assert done.returncode == 1
    assert words in done.stderr


def test_the_help_is_the_scripts_head():
    done = bash(f"bash {ROOT}/tools/bundle.sh --help")
    assert done.returncode == 0
    assert "--python" in done.stdout and "activate" in done.stdout and "install.sh" not in done.stdout


def test_the_shell_scripts_are_valid():
    for path in ("bundle.sh", "bundle/inside/activate", "bundle/inside/bin/dsvlp"):
        subprocess.run(["bash", "-n", str(ROOT / "tools" / path)], check=True, timeout=20)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with one pure package, made for this machine."""
    folder = tmp_path / "bundle"
    shutil.copytree(ROOT / "tools" / "bundle" / "inside", folder)
    site = folder / "lib" / f"python{PYTHON}" / "site-packages"
    info = site / "little-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "little.py").write_text("here = 'bundle'\n")
    (site / "packaging.py").write_text("raise SystemError('the bundle came before the machine')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: little\nVersion: 1.0\n")
    (site / "ffcv").mkdir()
    library = next(Path(sys.base_prefix, "lib").rglob("*.so"))
    shutil.copy(library, site / "ffcv" / "_libffcv.abi3.so")
    describe(folder)
    return folder


def describe(folder: Path, **changes: object) -> None:
    """Writes the manifest of what lies in a folder."""
    path = folder / "manifest.json"
    path.unlink(missing_ok=True)
    files = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }
    manifest = {
        "python": PYTHON,
        "machine": platform.machine(),
        "glibc": "2.17",
        "assumed": ["packaging"],
        "left_out": {},
        "files": files,
    }
    path.write_text(json.dumps({**manifest, **changes}))


def activated(bundle: Path, command: str) -> subprocess.CompletedProcess[str]:
    return bash(f"source {bundle}/activate && {command}", PYTHON=sys.executable, PYTHONPATH="")


@pytest.mark.parametrize("times", [1, 2])
def test_an_activated_shell_finds_the_bundles_packages_after_its_own(bundle, times):
    code = "import little, packaging, sys; print(little.here, sys.path[-1])"
    done = activated(bundle, f"source {bundle}/activate && " * (times - 1) + f'"$PYTHON" -c "{code}"')
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["bundle", str(bundle / "lib" / f"python{PYTHON}" / "site-packages")]


def test_a_sitecustomize_of_the_machine_still_runs(bundle, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("import sys; sys.own = 'yes'\n")
    command = f'source {bundle}/activate && "$PYTHON" -c "import little, sys; print(sys.own)"'
    done = bash(command, PYTHON=sys.executable, PYTHONPATH=str(tmp_path / "own"))
    assert done.stdout == "yes\n", done.stderr


def test_another_python_is_left_alone(bundle):
    (bundle / "lib" / f"python{PYTHON}").rename(bundle / "lib" / "python3.99")
    done = bash(f'"{sys.executable}" -c "import little"', PYTHONPATH=str(bundle / "path"))
    assert "No module named 'little'" in done.stderr


@pytest.mark.parametrize("harm", ["change", "delete"])
def test_damage_is_said_in_a_sentence_and_nothing_is_activated(bundle, harm):
    file = bundle / "lib" / f"python{PYTHON}" / "site-packages" / "little.py"
    file.write_text("here = 'bumble'\n") if harm == "change" else file.unlink()
    done = activated(bundle, "true")
    assert done.returncode == 1
    assert "the bundle is damaged: 1 of" in done.stderr and "little.py" in done.stderr
    assert "Traceback" not in done.stderr
    after = bash(f'source {bundle}/activate; echo "[$PYTHONPATH]"', PYTHON=sys.executable, PYTHONPATH="")
    assert after.stdout == "[]\n"


def test_an_archive_that_was_cut_short_is_damage_too(bundle):
    (bundle / "manifest.json").unlink()
    done = activated(bundle, "true")
    assert done.returncode == 1
    assert "the bundle is damaged: manifest.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": "3.99"}, "the bundle was made for 3.99"),
        ({"machine": "riscv64"}, "the bundle was made for riscv64"),
        ({"glibc": "9.9"}, "the bundle needs 9.9 or newer"),
        (
            {"assumed": ["packaging", "no-such-torch"]},
            "missing here, and no part of the bundle: no-such-torch",
        ),
    ],
)
def test_a_machine_that_does_not_fit_is_told_why(bundle, changes, words):
    describe(bundle, **changes)
    done = activated(bundle, "true")
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_package_of_the_machine_that_a_member_cannot_use_is_named(bundle):
    info = bundle / "lib" / f"python{PYTHON}" / "site-packages" / "little-1.0.dist-info"
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: little\nVersion: 1.0\nRequires-Dist: packaging<1\n"
    )
    describe(bundle)
    done = activated(bundle, "true")
    assert done.returncode == 1
    assert "little 1.0 needs packaging<1, found: " in done.stderr


def missing() -> str:
    """Returns what this machine lacks to make a bundle."""
    programs = [p for p in ("g++", "pkg-config", "readelf", "strip", "xz") if shutil.which(p) is None]
    if platform.machine() != "x86_64" or programs:
        return f"an x86_64 machine with {', '.join(programs)} is needed"
    if bash("pkg-config --exists opencv4 libturbojpeg").returncode:
        return "OpenCV's and libturbojpeg's headers are needed"
    index = [sys.executable, "-m", "pip", "index", "versions", "hjson"]
    found = subprocess.run(index, capture_output=True, timeout=120).returncode == 0
    return "" if found else "no package index is reached"


@pytest.mark.slow
def test_a_bundle_serves_where_only_torch_torchvision_and_transformers_are(tmp_path):
    reason = missing()
    if reason:
        pytest.skip(reason)
    archive = tmp_path / "bundle.tar.xz"
    done = bash(
        f"bash {ROOT}/tools/bundle.sh --fast --out {archive}", 1500, PYTHON=sys.executable, TEST_PYTHON=""
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for claim in ("every wheel's tags fit", "dsvlp doctor finds all", "three steps are trained"):
        assert f"self-test: {claim}" in done.stdout
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    paths = [m.name.split("/") for m in members]
    assert paths == sorted(paths)
    assert {(m.mtime, m.uid, m.gid) for m in members} == {(0, 0, 0)}
    assert not [m.name for m in members if "__pycache__" in m.name or m.name.endswith((".a", ".pyi"))]
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    cut = bash(
        f"cd {tmp_path} && tar xf bundle.tar.xz; source dsvlp-bundle-*/activate", PYTHON=sys.executable
    )
    assert "the bundle is damaged" in cut.stderr and "Traceback" not in cut.stderr
