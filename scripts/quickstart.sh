#!/bin/sh
# Trains and evaluates DSSN on the synthetic data set `shapes`, on a CPU or a GPU. First installs
# what is missing:
#   sh scripts/quickstart.sh [train.py arguments]

set -e
trap : INT # Ctrl-C: wait for training to save, then end with its status
CDPATH='' cd -- "$(dirname -- "$0")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh
# shellcheck disable=SC2119
set_up_python
start=$(date +%s)

"$python" -m dssn shapes

dataset=shapes method=DSSN exp=resnet18 split=20 config=configs/shapes.yaml exp_root=exp \
    sh scripts/train.sh 1 "$(free_port 29500)" "$@"

run=exp/shapes/DSSN/resnet18/20
"$python" eval.py --checkpoint $run/best.pth --json $run/eval_student.json --save-dir $run/pictures
"$python" eval.py --checkpoint $run/t_best.pth --weights teacher --json $run/eval_teacher.json

"$python" -c '
import json, sys, time

student, teacher = [json.load(open(path))["scores"][role]
                    for path, role in zip(sys.argv[1:3], ("student", "teacher"))]
print("quickstart: student mIoU %.2f, teacher mIoU %.2f on %d images in %d s"
      % (student["miou"], teacher["miou"], student["images"], time.time() - int(sys.argv[3])))
' $run/eval_student.json $run/eval_teacher.json "$start"
