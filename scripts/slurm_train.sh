#!/bin/sh
# Trains on a Slurm cluster: sh scripts/slurm_train.sh <num_gpu> <port> <partition> [train.py arguments]
#
# Five variables of the environment (defaults below) choose the run. Example: Pascal on four GPUs:
#   dataset=pascal exp=resnet101 split=1_16 sh scripts/slurm_train.sh 4 29500 gpu
#
# It submits itself as a batch job and waits for the job. sbatch reads its own variables too:
# SBATCH_TIMELIMIT, SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_EXCLUSIVE ... With SBATCH_SIGNAL=USR1@120
# (the default) training saves, stops and is requeued 2 to 3 minutes before its time limit.

# In the job, Slurm runs a copy of this file in the repository root.
if [ "${1-}" = --in-job ]; then
    shift
    exec "$1" scripts/slurm_job.py "$@"
fi

dataset=${dataset:-shapes}
method=${method:-DSSN}
exp=${exp:-resnet18}
split=${split:-20}
config=${config:-configs/$dataset.yaml}

# More variables of the environment: nodes, cpus_per_task and gres. <num_gpu> counts the GPUs of all
# nodes. The default of gres is gpu:<GPUs of one node>; gres= (empty) requests none. gres=
# SBATCH_GPUS_PER_TASK=1 requests one GPU per process instead.
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
case $cpus_per_task in
'' | 0* | ?????* | *[!0-9]*) fail "cpus_per_task must be a positive number, got '$cpus_per_task'" 2 ;;
esac
per_node=$((num_gpu / nodes))
[ $((per_node * nodes)) -eq "$num_gpu" ] || fail "<num_gpu> $num_gpu does not divide among nodes=$nodes" 2
gres=${gres-gpu:$per_node}
command -v sbatch >/dev/null || fail 'no sbatch on the PATH: this needs Slurm; sh scripts/train.sh trains on one machine'

export SBATCH_SIGNAL="${SBATCH_SIGNAL:-USR1@120}"
new_log ''
# A requeued job continues the same log. % is doubled, because sbatch replaces patterns such as %j.
exec "$python" scripts/submit.py "$log" sbatch --wait --requeue --parsable --partition="$partition" \
    --nodes="$nodes" --ntasks="$num_gpu" --ntasks-per-node="$per_node" ${gres:+--gres="$gres"} \
    --cpus-per-task="$cpus_per_task" --job-name="$dataset-$method-$exp-$split" --chdir="$PWD" \
    --output="$(printf '%s\n' "$PWD/$log" | sed 's/%/%%/g')" --open-mode=append \
    scripts/slurm_train.sh --in-job "$python" -u "$@"
