#!/bin/sh
# Trains on one machine or several: sh scripts/train.sh <num_gpu> <port> [train.py arguments]
#
# Five variables of the environment (defaults below) choose the run. Example: Pascal on four GPUs:
#   dataset=pascal exp=resnet101 split=1_16 sh scripts/train.sh 4 29500
#
# On several machines, start the same command on each with NNODES, NODE_RANK and MASTER_ADDR.
# <num_gpu> counts the GPUs of one machine. Example: two machines with four GPUs each:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first.example.org sh scripts/train.sh 4 29500     on the first
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=first.example.org sh scripts/train.sh 4 29500     on the second

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

# Number and rank of the machines.
nodes=${NNODES:-1}
node=${NODE_RANK:-0}
case $nodes in
0* | ?????* | *[!0-9]*) fail "NNODES must be the number of machines, got '$nodes'" 2 ;;
esac
case $node in
0?* | ?????* | *[!0-9]*) fail "NODE_RANK must be a number from 0 to NNODES - 1, got '$node'" 2 ;;
esac
if [ -n "${NODE_RANK-}" ] && [ -z "${NNODES-}" ]; then
    fail "NODE_RANK=$node is set without NNODES: set NNODES to the number of machines, or unset NODE_RANK" 2
elif [ "$node" -ge "$nodes" ]; then
    fail "NODE_RANK=$node with NNODES=$nodes: the machines are numbered from 0 to $((nodes - 1))" 2
elif [ "$nodes" -gt 1 ] && [ -z "${NODE_RANK-}" ]; then
    fail "NNODES=$nodes is set without NODE_RANK: set it to 0 on the machine at MASTER_ADDR, 1 on the next and so on" 2
elif [ "$nodes" -gt 1 ] && [ -z "${MASTER_ADDR-}" ]; then
    fail "NNODES=$nodes is set without MASTER_ADDR: set it to the host name or address of the machine with NODE_RANK=0" 2
fi

# shellcheck source=scripts/launch.sh
. scripts/launch.sh

# The processes connect to this port of the first machine.
if [ "$node" -eq 0 ]; then
    free=$(free_port "$port")
    [ "$free" = "$port" ] || fail "port $port is in use or not allowed here; port $free is free"
fi

# Several machines may share the run's folder, so each has a log of its own.
suffix=
[ "$nodes" -eq 1 ] || suffix=_node$node
new_log "$suffix"

if [ $((num_gpu * nodes)) -eq 1 ]; then
    exec "$python" scripts/logged.py "$log" "$python" -u "$@"
fi

# Without a limit, each process would start a thread for every core of the machine.
if [ -z "${OMP_NUM_THREADS-}" ]; then
    OMP_NUM_THREADS=$(($(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) / num_gpu))
    [ "$OMP_NUM_THREADS" -ge 1 ] || OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
fi

set -- --nnodes "$nodes" --nproc_per_node "$num_gpu" --master_port "$port" "$@"
[ "$nodes" -eq 1 ] || set -- --node_rank "$node" --master_addr "$MASTER_ADDR" "$@"
# torch 1.8 has no torch.distributed.run. Look for its file, because importing torch is slow.
if "$python" -c 'import importlib.util as u, os, sys
sys.exit(not os.path.exists(os.path.join(os.path.dirname(u.find_spec("torch").origin), "distributed", "run.py")))'; then
    set -- torch.distributed.run "$@"
else
    set -- torch.distributed.launch --use_env "$@"
fi
exec "$python" scripts/logged.py --launcher "$log" "$python" -u -m "$@"
