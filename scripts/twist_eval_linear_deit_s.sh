#!/usr/bin/env bash
#SBATCH --job-name=twist_eval_linear_deit_s
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
# Linear classification of a TWIST DeiT-S: 100 epochs, 1024 images a step. Published top-1: 76.3 %.
# Set DATASET_PATH (the folder that holds train and val), CHECKPOINT and EXPERIMENT_PATH; further flags go on the
# command line. --key teacher_backbone judges the teacher. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
CHECKPOINT=${CHECKPOINT:-experiments/twist_deit_s/checkpoint.pth.tar}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/twist_eval_linear_deit_s}

exec scripts/launch.sh eval_linear.py --protocol vit \
  --data_path "$DATASET_PATH" --pretrained "$CHECKPOINT" --dump_path "$EXPERIMENT_PATH" \
  --lr 0.02 --batch_size_per_gpu 128 --n_last_blocks 4 --epochs 100 \
  "$@"
