#!/usr/bin/env bash
#SBATCH --job-name=cwrgp4_tiny_in
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# CW-RGP, 4 views, ResNet-18 on tiny_in, 1000 epochs. Published linear / 5-NN: 50.24 / 35.99 %.
# Set DATASET_PATH (the set's root) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/data}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/cwrgp4_tiny_in}

exec scripts/launch.sh main_intl.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --method cwrgp --dataset tiny_in --epochs 1000 --lr 0.002 --num_samples 4 --bs 256 --w_size 128 --group 2 \
  --w_iter 1 --emb 1024 --head_size 2048 --knn_freq 50 --knn_k 5 \
  "$@"
