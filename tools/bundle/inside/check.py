"""Says whether this bundle can serve on this machine: `python check.py`, run by `activate`.

Exit code 1 and a sentence for each hindrance: another Python or system, damaged files, a package that the
machine should have and lacks or has in a version that does not fit. The standard library is enough for it.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parent
STAMP = BUNDLE / ".checked"
AGAIN = f"Copy the archive again, compare its SHA-256, delete {BUNDLE} and unpack it anew."


def system_problems(manifest):
    """Yields what of Python, processor and C library does not fit."""
    found = "{}.{}".format(*sys.version_info[:2])
    if found != manifest["python"]:
        yield (
            f"{sys.executable} is Python {found}, but the bundle was made for {manifest['python']}. Make "
            f"one with tools/bundle.sh --python {found}, or name a fitting Python: PYTHON=/path/to/python"
        )
    if platform.machine() != manifest["machine"]:
        yield f"this is a {platform.machine()} machine, but the bundle was made for {manifest['machine']}."
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "no glibc").split()[-1]
    except (ValueError, OSError):
        glibc = "none"
    if not glibc[0].isdigit() or numbers(glibc) < numbers(manifest["glibc"]):
        yield (
            f"the C library here is glibc {glibc}, but the bundle needs {manifest['glibc']} or newer. "
            "Make the bundle on an older system, or use a container with a newer one."
        )


def numbers(version):
    """Returns "2.34" as (2, 34)."""
    return tuple(int(part) for part in version.split("."))


def damage(manifest):
    """Yields a sentence where files differ from the manifest; whoever has seen it whole leaves a stamp."""
    if STAMP.exists():
        return
    bad = [name for name, digest in manifest["files"].items() if sha256(BUNDLE / name) != digest]
    if bad:
        yield (
            f"the bundle is damaged: {len(bad)} of {len(manifest['files'])} files are missing or changed, "
            f"first {bad[0]}. {AGAIN}"
        )
        return
    with contextlib.suppress(OSError):  # in a read-only place it is looked at anew each time
        STAMP.touch()


def sha256(path):
    """Returns the file's digest; an empty text where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def package_problems(manifest):
    """Yields what the machine lacks, and which of its packages do not fit those that the bundle adds."""
    missing = [name for name in manifest["assumed"] if version(name) is None]
    if missing:
        yield f"missing here, and no part of the bundle: {', '.join(missing)}. The machine must have them."
        return
    from packaging.requirements import Requirement

    for member in importlib.metadata.distributions(path=[str(site(manifest))]):
        name = member.metadata["Name"]
        if version(name) != member.version:
            continue  # the machine has its own, which comes first
        for requirement in map(Requirement, member.requires or []):
            if requirement.name.lower() in manifest["left_out"]:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            found = version(requirement.name)
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                yield (
                    f"{name} {member.version} needs {requirement.name}{requirement.specifier}, "
                    f"found: {found}. The bundle replaces nothing: install a fitting one, or name another "
                    "Python: PYTHON=/path/to/python"
                )


def version(name):
    """Returns the version that an import would meet; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def site(manifest):
    """Returns the folder of the bundle's packages."""
    return BUNDLE / "lib" / f"python{manifest['python']}" / "site-packages"


def extension_problems(manifest):
    """Yields why FFCV's extension cannot be loaded: the proof that its libraries fit this system."""
    try:
        ctypes.CDLL(str(site(manifest) / "ffcv" / "_libffcv.abi3.so"))
    except OSError as error:
        yield f"FFCV's extension cannot be loaded: {error}. It needs the libstdc++ of GCC 11 or newer."


def main():
    """Prints what hinders the bundle; returns the exit code."""
    try:
        manifest = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        print(f"bundle: the bundle is damaged: manifest.json is missing or cut. {AGAIN}", file=sys.stderr)
        return 1
    problems = []
    for look in (system_problems, damage, package_problems, extension_problems):
        problems = list(look(manifest))
        if problems:
            break
    for problem in problems:
        print(f"bundle: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
