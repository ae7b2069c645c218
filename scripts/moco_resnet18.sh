#!/usr/bin/env bash
#SBATCH --job-name=moco_resnet18
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
# MoCo-v2, resnet18, 200 epochs, 256 images a step (table 1 of DisCo). Published linear top-1: 52.2 %; judge it with
# `eval_linear.py --learning-rate 3.0`.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/moco_resnet18}

exec scripts/launch.sh main_disco.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  -a resnet18 --hidden 1280 --epochs 200 \
  --mlp --moco_t 0.2 --aug_plus --cos --batch_size 256 --lr 0.03 \
  --ranks 8 --virtual_ranks auto \
  "$@"
