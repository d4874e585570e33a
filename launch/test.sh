#!/usr/bin/env bash
# Runs the tests, the slow ones too, in the environment that local.sh uses:
#
#   launch/test.sh [--fast] [arguments for pytest …]
#
# --fast leaves out the tests marked slow. Paths count from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chosen='slow or not slow'
if [ "${1:-}" = --fast ]; then
    chosen='not slow'
    shift
fi

. launch/environment.sh
need requirements.txt
need tests/requirements.txt requirements.txt

exec "$python" -m pytest -m "$chosen" -n auto --dist loadfile \
    --no-loadscope-reorder --durations=15 "$@"
