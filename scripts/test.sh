#!/bin/sh
# Runs the tests: sh scripts/test.sh [pytest arguments]
# Tests that are marked `slow` are left out; `-m ''` includes them.
# One test per core runs at a time, and one more, since many wait for processes that they start;
# `-n 0` runs one after the other. DSSN_EXTRAS=tests/extras.txt installs optional packages, too, without
# which their tests are skipped.

CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1
# shellcheck source=scripts/env.sh
. scripts/env.sh
set_up_python tests/requirements.txt ${DSSN_EXTRAS:+"$DSSN_EXTRAS"}

cores=$("$python" -c 'import os
print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
# If a test kills its process, the run ends and names it: with groups, pytest-xdist cannot go on.
exec "$python" -m pytest -n $((cores + 1)) --dist loadgroup --max-worker-restart 0 \
    -m 'not slow' "$@"
