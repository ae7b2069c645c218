#!/usr/bin/env bash
#SBATCH --job-name=w2ssl_eval_linear
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=450G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Linear evaluation as W2SSL does it: 100 epochs, 256 images a step, lr 0.1 per 256, cosine by epoch.
# Set DATASET_PATH (the folder that holds train and val), CHECKPOINT and EXPERIMENT_PATH; further flags go on the
# command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/w2ssl_eval_linear}
CHECKPOINT=${CHECKPOINT:-experiments/w2ssl_bs256/checkpoint.pth.tar}

exec scripts/launch.sh eval_linear.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --protocol w2ssl --pretrained "$CHECKPOINT" --epochs 100 --batch-size 256 \
  "$@"
