#!/usr/bin/env bash
#SBATCH --job-name=intl_ep200_multi-crop_ema
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
# INTL with momentum copy, ResNet-50, 2x224 + 192 + 160 + 128 + 96, 200 epochs, 256 images a step. Published linear
# top-1: 75.2 % (eval_linear.py --lr-classifier 0.4).
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/intl_ep200_multi-crop_ema}

exec scripts/launch.sh main_intl.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --method intl_m --multi-crop --epochs 200 --lr 0.4 --bs 256 --wd 1e-5 --iters 4 --axis 0 --m 0.996 \
  --projection_layers 3 --projection_size 8192 --emb 8192 --warmup_eps 2 \
  --ranks 8 --virtual_ranks auto \
  "$@"
