#!/bin/sh
# Short trainings of all methods with equal steps, several at a time, some minutes on a CUDA GPU:
#   sh scripts/gpu_evidence.sh [OUT] [--minutes 6] [options]    --help lists the options
#   sh scripts/gpu_evidence.sh [OUT] --rehearse                 the same on a CPU, in small sizes
# It needs no network. Paths are relative to the root of the repository. The runs are defined in
# experiments/gpu_evidence.yaml.

CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1
# shellcheck source=scripts/env.sh
. scripts/env.sh
find_python

# shellcheck disable=SC2154 # find_python sets it
exec "$python" -m dssn experiments evidence "$@"
