#!/usr/bin/env bash
#SBATCH --job-name=cwrgp_imagenet_ep100
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
# CW-RGP, ResNet-50, 4 views, 100 epochs, 4 GPUs x 128 = 512 images a step. Published linear top-1: 69.7 %
# (eval_linear.py --lars).
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/cwrgp_imagenet_ep100}

exec scripts/launch.sh main_intl.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --method cwrgp --epochs 100 --bs 512 --lr 0.05 --wd 1e-4 --num_samples 4 --w_size 128 --group 2 --emb 1024 \
  --head_layers 3 --head_size 2048 --cov_w 0.005 --cov_stop 50 \
  --ranks 4 --virtual_ranks auto \
  "$@"
