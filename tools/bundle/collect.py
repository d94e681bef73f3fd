"""Fills a bundle: `collect.py ffcv|packages|manifest`, called by tools/bundle.sh, which tells what it is.

Needs pip with a network; nothing of what it collects is imported, so any Python can collect for any other.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ModuleNotFoundError:  # a bare Python: pip carries its own
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

ASSUMED = {
    *(
        "torch",
        "filelock",
        "fsspec",
        "jinja2",
        "markupsafe",
        "mpmath",
        "networkx",
        "sympy",
        "typing-extensions",
    ),
    *("torchvision", "numpy", "pillow"),
    *("transformers", "huggingface-hub", "packaging", "pyyaml", "regex", "safetensors", "tokenizers", "tqdm"),
}
"""What the machine must have: torch, torchvision, transformers and what they cannot be imported without."""

LEFT_OUT = {
    "opencv-python": "only FFCV's RGBImageField.encode calls it, and dsvlp writes JPEGs itself",
    "terminaltables": "only FFCV's benchmarks print with it",
    "assertpy": "only FFCV's benchmarks use it",
    "fastargs": "only FFCV's examples use it",
    "pytorch-pfn-extras": "only FFCV's NormalizeImage on a GPU uses it",
    "fonttools": "matplotlib needs it for PDF and PostScript; dsvlp draws PNG",
    "grpcio": "only TensorBoard's server needs it: look at the curves on another machine",
    "tensorboard-data-server": "only TensorBoard's server needs it",
}
"""Required by members, but not by what dsvlp does with them; a machine may have them all the same."""

NOT_AT_RUN_TIME = re.compile(
    r"(^|/)(tests?|__pycache__|sample_data|include|mpl-data/images)/"
    r"|\.(pyi|pyx|pxd|a|h|hpp|c|cpp|cu|cuh|pyc)$"
    r"|^tensorboard/webfiles\.zip$|^(fontTools|mpl_toolkits/mplot3d/tests)/|^[^/]+\.dist-info/(RECORD|sboms/)"
)
"""Paths in a wheel that no run reads. `RECORD` would be wrong after this."""

PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]

SCIPY_INIT = '''"""SciPy, of which this bundle carries linear_sum_assignment alone; whole, it has 35 MB."""

__version__ = "{version}"
'''
SCIPY_OPTIMIZE = '''"""The one function of scipy.optimize that this bundle carries."""

from ._lsap import linear_sum_assignment

__all__ = ["linear_sum_assignment"]
'''


def add_ffcv(source: Path, site: Path) -> None:
    """Makes FFCV's Python files fit its self-contained extension, and adds a built package's metadata."""
    package = site / "ffcv"
    prune(package)
    shutil.rmtree(package / "benchmarks")
    image = package / "fields" / "rgb_image.py"
    text, found = re.subn(r"^import cv2\n", "", image.read_text(encoding="utf-8"), flags=re.M)
    text, calls = re.subn(r"^( +)(?=\w+ = cv2\.(?:cvtColor|resize)\()", r"\1import cv2\n\1", text, flags=re.M)
    if (found, calls) != (1, 2):
        sys.exit(f"collect: {image.name} of this FFCV imports and uses cv2 otherwise than 1.0.2 does")
    image.write_text(text, encoding="utf-8")
    metadata = (source / "PKG-INFO").read_text(encoding="utf-8")
    version = re.search(r"^Version: (.*)$", metadata, re.M)[1]  # type: ignore[index]
    needed = "Requires-Dist: numba\nRequires-Dist: tqdm\nRequires-Dist: psutil\n"
    info = site / f"ffcv-{version}+bundle.dist-info"
    (info / "licenses").mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: ffcv\nVersion: {version}+bundle\n{needed}", encoding="utf-8"
    )
    shutil.copy(source / "LICENSE", info / "licenses" / "ffcv")
    for notice in sorted(Path("/usr/share/doc").glob("lib*/copyright")):
        if re.match(r"lib(opencv-core|turbojpeg|tbb)[\d.a-z]*$", notice.parent.name):
            shutil.copy(notice, info / "licenses" / notice.parent.name)


def requirements(path: Path) -> list[Requirement]:
    """Returns what a wheel requires, its extras aside."""
    with zipfile.ZipFile(path) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(wheel.read(name).decode("utf-8"))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]


def applies(requirement: Requirement, python: str) -> bool:
    """Returns whether a requirement holds on a Linux with that Python, without any extra."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def setup_options() -> configparser.SectionProxy:
    """Returns setup.cfg's section "options"."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["options"]


def own_requirements() -> list[Requirement]:
    """Returns setup.cfg's requirements."""
    lines = setup_options()["install_requires"].splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.strip().startswith("#")]


def collect(python: str, work: Path, site: Path) -> None:
    """Downloads or builds every member's wheel and unpacks what is needed at run time."""
    wheels = work / "wheels"
    wheels.mkdir()
    pip("wheel", "--no-deps", "-w", str(wheels), str(copy_of_project(work)))
    wanted = {r for r in own_requirements() if r.name not in ("ffcv", "deepspeed")}
    deepspeed = next(str(r) for r in own_requirements() if r.name == "deepspeed")
    pip("wheel", "--no-deps", "-w", str(wheels), deepspeed)  # a pure one: DS_BUILD_OPS=0
    wanted |= {Requirement(text) for text in ("numba", "tqdm", "psutil")}  # ffcv's
    seen: set[str] = {"ffcv", "deepspeed", "dsvlp"}
    read: set[Path] = set()
    while True:
        for path in sorted(set(wheels.iterdir()) - read):
            read.add(path)
            wanted |= {r for r in requirements(path) if applies(r, python)}
        members = {r for r in wanted if canonicalize_name(r.name) not in ASSUMED | set(LEFT_OUT) | seen}
        if not members:
            break
        download(members, python, wheels)
        seen |= {canonicalize_name(r.name) for r in members}
    for path in sorted(wheels.iterdir()):
        unpack(path, site)
    only_assignment(site)
    prune(site)


def copy_of_project(work: Path) -> Path:
    """Returns a copy to build from: setuptools leaves folders in what it builds."""
    copy = work / "dsvlp"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for line in setup_options()["package_dir"].splitlines():
        folder = line.partition("=")[2].strip()
        if folder:
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def download(members: set[Requirement], python: str, folder: Path) -> None:
    """Fetches wheels for that Python, one for each name, newest that all its requirements allow."""
    texts: dict[str, list[str]] = {}
    for member in members:
        texts.setdefault(canonicalize_name(member.name), []).append(str(member.specifier))
    words = [name + ",".join(sorted(filter(None, parts))) for name, parts in sorted(texts.items())]
    tags = [word for tag in PLATFORMS for word in ("--platform", tag)]
    only = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    pip("download", *only, *tags, "-d", str(folder), *words)


def pip(*words: str) -> None:
    """Runs pip as it is configured here; ends with its words where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words]
    environment = {**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f"collect: pip {words[0]} failed: {done.stderr.strip()[-2000:]}")


def unpack(path: Path, site: Path) -> None:
    """Writes a wheel's modules; scripts and headers stay out."""
    with zipfile.ZipFile(path) as wheel:
        for entry in wheel.infolist():
            name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", entry.filename)
            if entry.is_dir() or re.match(r"[^/]+\.data/", name) or NOT_AT_RUN_TIME.search(name):
                continue
            target = site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wheel.read(entry))


def only_assignment(site: Path) -> None:
    """Reduces SciPy to its assignment solver."""
    solver = next((site / "scipy" / "optimize").glob("_lsap.*.so"))
    kept = solver.read_bytes()
    (info,) = site.glob("scipy-*.dist-info")
    version = info.name.removeprefix("scipy-").removesuffix(".dist-info") + "+bundle"
    for folder in (site / "scipy", site / "scipy.libs"):
        shutil.rmtree(folder)
    (site / "scipy" / "optimize").mkdir(parents=True)
    solver.write_bytes(kept)
    (site / "scipy" / "__init__.py").write_text(SCIPY_INIT.format(version=version), encoding="utf-8")
    (site / "scipy" / "optimize" / "__init__.py").write_text(SCIPY_OPTIMIZE, encoding="utf-8")
    metadata = info / "METADATA"
    metadata.write_text(
        re.sub(r"^Version: .*$", f"Version: {version}", metadata.read_text(encoding="utf-8"), flags=re.M),
        encoding="utf-8",
    )
    info.rename(site / f"scipy-{version}.dist-info")


def prune(folder: Path) -> None:
    """Deletes what no run reads and the symbols that only a debugger reads."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and NOT_AT_RUN_TIME.search(path.relative_to(folder).as_posix()):
            path.unlink()
    for path in sorted(folder.rglob("*.so")):
        # auditwheel's edits of a .libs folder and strip do not go together
        if not path.parent.name.endswith(".libs"):
            subprocess.run(["strip", "--strip-unneeded", str(path)], check=True, timeout=120)


def needed_symbols(files: list[Path]) -> Iterator[str]:
    """Yields the symbol versions that shared libraries ask of the system, such as GLIBC_2.34."""
    for path in files:
        done = subprocess.run(["readelf", "-VW", str(path)], capture_output=True, text=True, check=True)
        needs = done.stdout.partition(".gnu.version_r")[2]
        yield from re.findall(r"Name: ((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)", needs)


def newest(prefix: str, symbols: set[str]) -> str:
    """Returns the highest version among symbols such as GLIBC_2.34."""
    versions = [s.removeprefix(prefix + "_") for s in symbols if s.startswith(prefix + "_")]
    return max(versions, key=lambda v: [int(part) for part in v.split(".")])


def write_manifest(python: str, bundle: Path) -> None:
    """Writes manifest.json: versions, what the machine must have, and each file's SHA-256."""
    site = bundle / "lib" / f"python{python}" / "site-packages"
    packages = {}
    for info in sorted(site.glob("*.dist-info")):
        metadata = HeaderParser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
        packages[metadata["Name"]] = metadata["Version"]
    symbols = set(needed_symbols(sorted(site.rglob("*.so")) + sorted(site.rglob("*.so.*"))))
    files = {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "python": python,
        "machine": platform.machine(),
        "glibc": newest("GLIBC", symbols),
        "libstdcxx": newest("GLIBCXX", symbols),
        "packages": packages,
        "assumed": sorted(ASSUMED),
        "left_out": LEFT_OUT,
        "files": files,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (bundle / "manifest.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Reads the arguments that tools/bundle.sh gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["ffcv", "packages", "manifest"])
    parser.add_argument("--python")
    for name in ("source", "work", "site", "bundle"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    if given.what == "ffcv":
        add_ffcv(given.source, given.site)
    elif given.what == "packages":
        collect(given.python, given.work, given.site)
    else:
        write_manifest(given.python, given.bundle)


if __name__ == "__main__":
    main()
