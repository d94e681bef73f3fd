# Sourced by quickstart.sh and test.sh: `install base` or `install test` makes $ROOT/.venv ready.
# Bounds of versions stand in setup.cfg alone; this file only keeps the order that they need.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
STEP="starting"
ADVICE="Run the command again; if it fails again, read the lines above."

set -Eeuo pipefail
trap 'fail "$STEP did not work (exit code $?). $ADVICE"' ERR

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf '\n%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# step WHAT ADVICE: names what comes next, and what to do should it fail.
step() {
    STEP="$1" ADVICE="$2"
    say "$1"
}

# Prints an interpreter of Python 3.11 or 3.12; $PYTHON overrules.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

has_header() { "$1" -c 'import os, sysconfig as s, sys; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))'; }

# Prints the Debian packages that ffcv's build and the virtual environment still need.
missing_packages() {
    local python="$1"
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    [ -n "$python" ] || { echo python3; echo python3-dev; echo python3-venv; return 0; }
    has_header "$python" || echo python3-dev
    "$python" -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

install_system() {
    local missing
    missing="$(missing_packages "$1" | tr '\n' ' ')"
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "system packages are missing. On Debian or Ubuntu run: sudo apt-get install -y $missing
Without root: conda create -n dsvlp -c conda-forge python=3.11 cxx-compiler pkg-config libjpeg-turbo opencv
then: conda activate dsvlp, and start this script again."
    fi
    step "installing system packages: $missing" "Check the network, then run: apt-get update && apt-get install -y $missing"
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# requirement NAME...: prints the bounded requirements of these packages as setup.cfg has them.
requirement() {
    local name
    for name in "$@"; do
        sed -n "s/^ \{4\}\($name[<>=].*\)$/\1/p" "$ROOT/setup.cfg"
    done
}

# A torch that the site offers (with its CUDA) is kept where it lies within our bounds.
make_venv() {
    local python="$1" site=""
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    step "making $VENV" "Delete $VENV and run this script again."
    if "$python" -c 'import torch, sys; v = tuple(map(int, torch.__version__.split(".")[:2])); sys.exit(not (2, 10) <= v < (2, 14))' 2>/dev/null; then
        site="--system-site-packages"
        say "keeping the torch of $python"
    fi
    "$python" -m venv $site "$VENV"
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@"; }

# Holds torch at what is installed, so that no later package replaces it by another build.
hold_torch() {
    "$VENV/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >"$VENV/constraints.txt"
    export PIP_CONSTRAINT="$VENV/constraints.txt"
}

# pip reads PIP_* variables and its own configuration: an index or a folder of wheels given there is used.
install_python() {
    local extras="$1"
    step "installing torch (a GPU build has gigabytes)" \
        "Check the network and the disk. For a small CPU build, install torch into $VENV as PyTorch's page 'Start locally' says, then run this script again."
    pip install "setuptools>=77,<82" wheel
    if "$VENV/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
        hold_torch
    fi
    # One command: torchvision alone would bring the newest torch.
    mapfile -t wanted < <(requirement torch torchvision numpy pillow)
    pip install "${wanted[@]}"
    hold_torch
    step "building ffcv" "It needs g++, pkg-config, OpenCV's and libturbojpeg's headers and Python.h: 'dsvlp doctor' or the lines above name the missing one."
    mapfile -t wanted < <(requirement ffcv)
    pip install --no-build-isolation "${wanted[@]}"
    step "installing dsvlp" "Check the network, then run this script again."
    pip install --no-build-isolation -e "$ROOT$extras"
}

# install base|test: skips what a former call with the same setup.cfg has finished.
install() {
    local flavour="$1" python stamp key
    python="$(find_python)"
    stamp="$VENV/.dsvlp-$flavour"
    key="$ROOT $(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | sha256sum)"
    if [ -x "$VENV/bin/python" ] && grep -qsxF "$key" "$stamp" "$VENV/.dsvlp-test"; then
        return  # what tests need includes the rest
    fi
    install_system "$python"
    python="$(find_python)"
    [ -n "$python" ] || fail "no Python 3.11 or 3.12 was found. Install one, or name it: PYTHON=/path/to/python3.11 bash $0"
    make_venv "$python"
    install_python "$([ "$flavour" = test ] && echo '[test]' || true)"
    printf '%s\n' "$key" >"$stamp"
}
