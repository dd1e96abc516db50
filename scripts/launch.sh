# shellcheck shell=sh
# Sourced by train.sh and slurm_train.sh from the repository root. "$@" has the train.py arguments.
# Checks the settings, finds the Python, and puts the whole train.py command into "$@".

# shellcheck disable=SC2154 # the callers set usage, num_gpu, port and the five names of the run
case $num_gpu in
'' | 0* | ?????* | *[!0-9]*) fail "<num_gpu> must be a positive number, got '$num_gpu'; $usage" 2 ;;
esac
# shellcheck disable=SC2154
case $port in
'' | 0* | ??????* | *[!0-9]*) fail "<port> must be a number from 1 to 65535, got '$port'; $usage" 2 ;;
esac
[ "$port" -le 65535 ] || fail "<port> must be a number from 1 to 65535, got '$port'; $usage" 2

find_python

# shellcheck disable=SC2154
# exp_root is the folder above all runs.
save_path=${exp_root:-exp}/$dataset/$method/$exp/$split
set -- train.py --method "$method" --config "$config" \
    --labeled-id-path "splits/$dataset/$split/labeled.txt" \
    --unlabeled-id-path "splits/$dataset/$split/unlabeled.txt" \
    --save-path "$save_path" --port "$port" "$@"

# new_log SUFFIX: creates the run's folder and a log in it, named by the time; sets $log to its path
new_log() {
    log=$save_path/$(date +%Y%m%d_%H%M%S)$1.log
    reason=$({ mkdir -p -- "$save_path" && : >>"$log"; } 2>&1) || fail "cannot write to $save_path ($reason)"
    echo "log: $log"
}
