#!/usr/bin/env bash
# Installs what tests need and runs them: tools/test.sh [--all] [arguments of pytest].
# --all adds the tests marked slow, those of a real Slurm among them where root and Debian's packages can
# be had (else they are skipped, with the reason). Works from any directory; exit code: pytest's.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

marks=(-m "not slow") all=no
if [ "${1:-}" = --all ]; then
    marks=(-rs) all=yes
    shift
fi

install test

if [ $all = yes ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "making sure of Slurm"
    bash "$ROOT/tools/mini_slurm.sh" install || say "Slurm could not be installed: its tests are skipped"
fi

step "preparing" "Free some space under ${TMPDIR:-/tmp}."
# A killed build of an extension leaves a lock that hangs every later process: never share the folder.
TORCH_EXTENSIONS_DIR="$(mktemp -d)"
export TORCH_EXTENSIONS_DIR
trap 'rm -rf "$TORCH_EXTENSIONS_DIR"' EXIT

say "running the tests"
trap - ERR
set +e
cd "$ROOT" && "$VENV/bin/python" -m pytest "${marks[@]}" "$@" </dev/null
code=$?
if [ "$code" != 0 ]; then
    echo "test.sh: tests failed (exit code $code). Run one alone with: bash tools/test.sh tests/PATH -k NAME" >&2
fi
exit "$code"
