#!/usr/bin/env bash
#SBATCH --job-name=w2ssl_bs1024
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
# W2SSL, ResNet-50, 200 epochs, 2048 images = 1024 montages of each view a step. Published linear top-1: 72.8 %.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/w2ssl_bs1024}

exec scripts/launch.sh main_w2ssl.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --moco-m-cos --crop-min .2 --loss_crop 1.0 --epochs 200 --batch-size 2048 \
  --ranks 8 --virtual_ranks auto \
  "$@"
