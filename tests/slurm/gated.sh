#!/usr/bin/env bash
[ "$1" = -m ] || exec "$REAL_PYTHON" "$@"
exec "$REAL_PYTHON" "$(dirname "$0")/gated.py" "$@"
