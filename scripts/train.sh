#!/bin/sh
# Trains on one machine: sh scripts/train.sh <num_gpu> <port> [train.py arguments]
#
# These five name the run, and the environment overrides them. For example, four GPUs on Pascal:
#   dataset=pascal exp=resnet101 split=1_16 sh scripts/train.sh 4 29500

dataset=${dataset:-shapes}
method=${method:-DSSN}
exp=${exp:-resnet18}
split=${split:-20}
config=${config:-configs/$dataset.yaml}

usage='usage: sh scripts/train.sh <num_gpu> <port> [train.py arguments]'
num_gpu=${1-}
port=${2-}
shift $(($# < 2 ? $# : 2))

CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1
# shellcheck source=scripts/env.sh
. scripts/env.sh
# shellcheck source=scripts/launch.sh
. scripts/launch.sh

free=$(free_port "$port")
[ "$free" = "$port" ] || fail "port $port is in use or not allowed here; port $free is free"

if [ "$num_gpu" -eq 1 ]; then
    exec_logged "$python" -u "$@"
fi

# Processes that share the cores would otherwise each start a thread for every core.
if [ -z "${OMP_NUM_THREADS-}" ]; then
    OMP_NUM_THREADS=$(($(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) / num_gpu))
    [ "$OMP_NUM_THREADS" -ge 1 ] || OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
fi

# torch 1.8 has no torch.distributed.run; the file tells without the seconds that importing torch takes.
if "$python" -c 'import importlib.util as u, os, sys
sys.exit(not os.path.exists(os.path.join(os.path.dirname(u.find_spec("torch").origin), "distributed", "run.py")))'; then
    set -- torch.distributed.run --nnodes 1 --nproc_per_node "$num_gpu" --master_port "$port" "$@"
else
    set -- torch.distributed.launch --use_env --nnodes 1 --nproc_per_node "$num_gpu" --master_port "$port" "$@"
fi
exec_logged "$python" -u -m "$@"
