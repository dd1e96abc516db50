#!/bin/sh
# Runs the tests: sh scripts/test.sh [pytest arguments]

CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1
# shellcheck source=scripts/env.sh
. scripts/env.sh
set_up_python tests/requirements.txt

exec "$python" -m pytest "$@"
