#!/usr/bin/env bash
#SBATCH --job-name=study
#SBATCH --array=0-7
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
# A study (docs/study.md), shared by the tasks of an array: each does the next run that nobody is at. Any flags of study.py:
#
#   sbatch --array=0-15 scripts/study.sh /my/images --seeds 5 --epochs 200
#
# Before the time limit the run under way saves, and the task goes back into the queue.
set -euo pipefail
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
"$python" study.py "$@" &
child=$!
trap 'kill -USR1 $child 2>/dev/null || true' USR1
trap 'kill -TERM $child 2>/dev/null || true' TERM
code=0
wait $child || code=$?
while kill -0 $child 2>/dev/null; do  # a signal ends "wait", not the study
    code=0
    wait $child || code=$?
done
wait $child || code=$?
if [ "$code" = 138 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    # an array's last task bears the number of the whole array
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    scontrol requeue "${job:-$SLURM_JOB_ID}"
fi
exit "$code"
