#!/usr/bin/env bash
#SBATCH --job-name=intl_in100
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=200G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# INTL, ResNet-18 on ImageNet-100, two views, 400 epochs, 128 images a step. Published linear top-1: 81.68 %, 5-NN
# 73.46 %.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet100}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/intl_in100}

exec scripts/launch.sh main_intl.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --method intl --arch resnet18 --epochs 400 --lr 0.5 --bs 128 --wd 2.5e-5 --iters 4 --axis 0 \
  --projection_layers 3 --projection_size 4096 --emb 8192 --warmup_eps 2 \
  --ranks 4 --virtual_ranks auto \
  "$@"
