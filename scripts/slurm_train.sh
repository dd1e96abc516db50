#!/bin/sh
# Trains on a Slurm cluster: sh scripts/slurm_train.sh <num_gpu> <port> <partition> [train.py arguments]
#
# These five name the run, and the environment overrides them. For example, four GPUs on Pascal:
#   dataset=pascal exp=resnet101 split=1_16 sh scripts/slurm_train.sh 4 29500 gpu

dataset=${dataset:-shapes}
method=${method:-DSSN}
exp=${exp:-resnet18}
split=${split:-20}
config=${config:-configs/$dataset.yaml}

# So it does these. <num_gpu> counts the GPUs of all nodes; gres is gpu:<those of one node>, and
# gres= (empty) asks for none.
nodes=${nodes:-1}
cpus_per_task=${cpus_per_task:-8}

usage='usage: sh scripts/slurm_train.sh <num_gpu> <port> <partition> [train.py arguments]'
num_gpu=${1-}
port=${2-}
partition=${3-}
shift $(($# < 3 ? $# : 3))

CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1
# shellcheck source=scripts/env.sh
. scripts/env.sh
[ -n "$partition" ] || fail "$usage" 2
# shellcheck source=scripts/launch.sh
. scripts/launch.sh

case $nodes in
'' | 0* | ?????* | *[!0-9]*) fail "nodes must be a positive number, got '$nodes'" 2 ;;
esac
per_node=$((num_gpu / nodes))
[ $((per_node * nodes)) -eq "$num_gpu" ] || fail "<num_gpu> $num_gpu does not divide among nodes=$nodes" 2
gres=${gres-gpu:$per_node}
command -v srun >/dev/null || fail 'no srun on the PATH: this needs Slurm; sh scripts/train.sh trains on one machine'

exec_logged srun --partition="$partition" --nodes="$nodes" --ntasks="$num_gpu" --ntasks-per-node="$per_node" \
    ${gres:+--gres="$gres"} --cpus-per-task="$cpus_per_task" --job-name="$dataset-$method-$exp-$split" \
    --kill-on-bad-exit=1 "$python" -u "$@"
