"""Unpacks a bundle and uses it as a machine would that has torch, torchvision and transformers alone.

`selftest.py ARCHIVE [--use]`, run by tools/bundle.sh. With --use this Python must be of the bundle's version
and have these three: they are linked into an empty environment, the network is taken away (`unshare`) and no
compiler is on PATH. Without, the test ends after what any Python can see.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags, parse_tag

SYSTEM_LIBRARIES = re.compile(r"^(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|z)\.so\.\d+|ld-linux-x86-64\.so\.2)$")
"""What every machine with torch has; all else must lie in the bundle."""

OPTIONAL_LIBRARIES = {"libgomp.so.1.0.0"}
"""Numba's OpenMP layer asks for it; without it Numba takes its own work queue."""

PROGRAMS = "bash sh env cat ls dirname uname rm mkdir id ip"
"""All that the self-test's PATH offers: no compiler among them."""

STEPS = (
    ("ffcv, deepspeed and timm are imported", 'python -c "import dsvlp.vision, ffcv, deepspeed, timm"'),
    ("dsvlp doctor finds all", "python -m dsvlp doctor"),
    ("three steps are trained", "dsvlp train tiny_svl --run RUN schedule.steps=3 data.synthetic.images=64"),
)


def packaging_problems(bundle: Path) -> list[str]:
    """Returns wheels whose tags do not fit the bundle's Python, and libraries that nobody provides."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    site = bundle / "lib" / f"python{manifest['python']}" / "site-packages"
    minor = tuple(int(part) for part in manifest["python"].split("."))
    platforms = [f"manylinux_2_{n}_x86_64" for n in range(34, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    fitting = {
        *cpython_tags(minor, platforms=platforms),
        *compatible_tags(minor, platforms=[*platforms, "any"]),
    }
    problems = []
    for path in sorted(site.glob("*.dist-info/WHEEL")):
        tags = re.findall(r"^Tag: (.*)$", path.read_text(encoding="utf-8"), re.M)
        if not fitting & {tag for text in tags for tag in parse_tag(text)}:
            problems.append(f"{path.parent.name} is built for {', '.join(tags)}")
    libraries = sorted(p for p in site.rglob("*.so*") if p.is_file())
    own = {path.name for path in libraries}
    for path in libraries:
        done = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True)
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout):
            if name not in own | OPTIONAL_LIBRARIES and not SYSTEM_LIBRARIES.match(name):
                problems.append(
                    f"{path.relative_to(site)} needs {name}, which nothing in the bundle provides"
                )
    return problems


def closure(names: list[str]) -> list[importlib.metadata.Distribution]:
    """Returns the installed distributions that these need, themselves included."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        needs = map(Requirement, found[name].requires or [])
        waiting += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return list(found.values())


def make_machine(folder: Path) -> Path:
    """Makes an environment of this Python with torch, torchvision and transformers alone; returns its bin."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    for distribution in closure(["torch", "torchvision", "transformers"]):
        for top in {Path(file).parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    for program in PROGRAMS.split():
        path = shutil.which(program)
        if path:
            (folder / "bin" / program).symlink_to(path)
    return folder / "bin"


def isolated() -> list[str]:
    """Returns the words before a command that take its network away; none where this is forbidden."""
    program = shutil.which("unshare")
    if program is None:
        return []
    words = [program, "--net"] if os.getuid() == 0 else [program, "--net", "--map-root-user"]
    return [] if subprocess.run([*words, "true"], capture_output=True, timeout=20).returncode else words


def run(command: str, bundle: Path, programs: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command on that machine after `activate`."""
    command = command.replace("RUN", str(work / "run"))
    script = f"ip link set lo up 2>/dev/null; source {bundle}/activate && {command}"
    environment = {
        "PATH": str(programs),
        "HOME": str(work),
        "TMPDIR": str(work),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [*isolated(), str(programs / "bash"), "-c", script],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


def main() -> int:
    """Prints what was tested and what was not; returns the exit code."""
    archive, full = Path(sys.argv[1]), sys.argv[2:] == ["--use"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        (bundle,) = work.glob("dsvlp-bundle-*")
        problems = packaging_problems(bundle)
        if problems:
            print("self-test: " + "\nself-test: ".join(problems), file=sys.stderr)
            return 1
        print("self-test: every wheel's tags fit, every library needed is the bundle's or the system's")
        if not full:
            return 0
        programs = make_machine(work / "machine")
        if not isolated():
            print("self-test: 'unshare --net' is forbidden here: the network stays during what follows")
        for claim, command in STEPS:
            done = run(command, bundle, programs, work)
            if done.returncode:
                print(f"self-test: not true: {claim}\n{(done.stdout + done.stderr)[-4000:]}", file=sys.stderr)
                return 1
            print(f"self-test: {claim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
