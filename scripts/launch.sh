#!/usr/bin/env bash
# Starts one of the main_*.py or eval_*.py on every GPU: of all nodes inside a Slurm job, else of this machine.
#
#   scripts/launch.sh main_swav.py --data_path ...        the scripts beside this one are such calls, with every flag
#
# Run from the repository's root. Environment:
#   PYTHON         interpreter (default: .venv/bin/python if it is there, else python)
#   NPROC          processes on each node (default: its GPUs)
#   NNODES         without Slurm: the number of machines (default: 1), on each of which this is started, with
#   NODE_RANK      its own number from 0 on, and
#   MASTER_ADDR    the address of number 0 (and MASTER_PORT, default 29500)
#   MAX_RESTARTS   how often torchrun starts all processes again when one dies (default: 0); they resume by themselves
#   DRY_RUN=1      print the command instead of running it
#
# Before the time limit Slurm sends USR1 (--signal in the recipes): all processes finish their step, save and leave,
# and this script puts the job back into the queue, where it goes on from there.
set -euo pipefail
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
if [ -n "${DRY_RUN:-}" ]; then
    echo "$@"
    exit
fi
NPROC=${NPROC:-${SLURM_GPUS_ON_NODE:-$("$python" -c "import torch; print(max(1, torch.accelerator.device_count()))")}}
torchrun=("$python" -m torch.distributed.run --nproc_per_node="$NPROC" --max_restarts="${MAX_RESTARTS:-0}")
if [ -z "${SLURM_JOB_ID:-}" ]; then
    if [ "${NNODES:-1}" = 1 ]; then
        exec "${torchrun[@]}" --standalone "$@"
    fi
    exec "${torchrun[@]}" --nnodes="$NNODES" --node_rank="${NODE_RANK:?this machine, from 0 on}" \
        --master_addr="${MASTER_ADDR:?the address of machine 0}" --master_port="${MASTER_PORT:-29500}" "$@"
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
torchrun+=(--nnodes="$SLURM_JOB_NUM_NODES" --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv_backend=c10d)
torchrun+=(--rdzv_endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))")
# Slurm's USR1 reaches every process of a task. torchrun would die of it, so it is told to ignore it; the training
# processes install their own handler; and the shell around them remembers that it came.
around_torchrun='
stopped=
trap "stopped=yes" USR1
(trap "" USR1; exec "$@") &
child=$!
code=0
wait $child || code=$?
while kill -0 $child 2>/dev/null; do wait $child || code=$?; done  # a signal ends "wait", not the training
[ -z "$stopped" ] || [ $code -eq 0 ] || code=138
exit $code'
code=0
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 \
    bash -c "$around_torchrun" launch "${torchrun[@]}" "$@" || code=$?
if [ $code -eq 138 ]; then
    echo "stopped before the time limit; back into the queue"
    # an array's last task bears the number of the whole array
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    scontrol requeue "${job:-$SLURM_JOB_ID}"
fi
exit $code
