#!/usr/bin/env bash
#SBATCH --job-name=disco_eval_linear
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
# Linear evaluation as MoCo-v2 and DisCo do it: 100 epochs, 256 images a step, lr 3, halved at 11 epochs.
# Set DATASET_PATH (the folder that holds train and val), CHECKPOINT and EXPERIMENT_PATH; further flags go on the
# command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/disco_eval_linear}
CHECKPOINT=${CHECKPOINT:-experiments/disco_pretrain/checkpoint.pth.tar}

exec scripts/launch.sh eval_linear.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --protocol moco --pretrained "$CHECKPOINT" --learning-rate 3.0 --batch-size 256 \
  "$@"
