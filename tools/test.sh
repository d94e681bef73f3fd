#!/usr/bin/env bash
# Installs what tests need and runs them: tools/test.sh [--all] [arguments of pytest].
# --all adds the tests marked slow. Works from any directory; exit code: pytest's.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

marks=(-m "not slow")
if [ "${1:-}" = --all ]; then
    marks=()
    shift
fi

install test

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
