#!/usr/bin/env bash
# Runs the tests in the environment that local.sh uses:
#
#   launch/test.sh [--fast | --long] [arguments for pytest …]
#
# --fast skips the tests marked slow: five minutes on two idle cores.
# --long adds the tests marked long, which test further variants.
# Paths start at the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chosen='not long'
case "${1:-}" in
--fast) chosen='not slow and not long' && shift ;;
--long) chosen='long or not long' && shift ;;
esac

. launch/environment.sh
need requirements.txt
need tests/requirements.txt requirements.txt

exec "$python" -m pytest -m "$chosen" -n auto --dist loadfile \
    --no-loadscope-reorder --durations=15 "$@"
