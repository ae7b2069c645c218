#!/usr/bin/env bash
#SBATCH --job-name=eval_linear
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=80
#SBATCH --mem=450G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Linear classification of any checkpoint, by the protocol of its own paper (--protocol asks for another), on 8 GPUs.
# Set DATASET_PATH (the folder that holds train and val), CHECKPOINT and EXPERIMENT_PATH; further flags go on the
# command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
CHECKPOINT=${CHECKPOINT:-experiments/swav_800ep_pretrain/checkpoint.pth.tar}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/eval_linear}

exec scripts/launch.sh eval_linear.py \
  --data_path "$DATASET_PATH" --pretrained "$CHECKPOINT" --dump_path "$EXPERIMENT_PATH" \
  "$@"
