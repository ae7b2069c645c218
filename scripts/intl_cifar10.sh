#!/usr/bin/env bash
#SBATCH --job-name=intl_cifar10
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
# INTL, ResNet-18 on CIFAR-10, 1000 epochs, 256 images a step. Published linear top-1: 92.60 %, 5-NN 90.03 %.
# Set DATASET_PATH (torchvision's root) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/data}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/intl_cifar10}

exec scripts/launch.sh main_intl.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --method intl --dataset cifar10 --arch resnet18 --projection_size 2048 --emb 2048 --epochs 1000 --lr 0.3 --wd 1e-4 \
  --bs 256 --knn_freq 50 --knn_k 5 \
  "$@"
