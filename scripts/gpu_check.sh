#!/bin/sh
# Runs the tests that need a GPU, and benchmarks, within some minutes:
#   sh scripts/gpu_check.sh [OUT] [--minutes N] [--rehearse]
# OUT is a folder for the results, exp/gpu_check by default, relative to the repository.

CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1
# shellcheck source=scripts/env.sh
. scripts/env.sh
# Prefer an environment that can run the tests. Otherwise they fail and report what is missing.
search requirements.txt tests/requirements.txt || find_python

exec "$python" -m dssn bench gpu_check "$@"
