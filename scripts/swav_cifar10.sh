#!/usr/bin/env bash
# SwAV on CIFAR-10 with the stem for small images, on one GPU or a CPU: a starting point for small data, not tuned.
# Set DATASET_PATH to the root of torchvision's CIFAR-10 (--download fetches it) and EXPERIMENT_PATH; further flags go
# on the command line.
DATASET_PATH=${DATASET_PATH:-/path/to/data}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/swav_cifar10}
export NPROC=${NPROC:-1}

exec scripts/launch.sh main_swav.py --dataset cifar10 \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --arch resnet18 --stem small --nmb_crops 2 --size_crops 32 --min_scale_crops 0.2 --max_scale_crops 1 \
  --jitter_strength 0.5 --blur 0 --nmb_prototypes 100 --batch_size 256 --base_lr 0.6 --final_lr 0.0006 \
  --warmup_epochs 0 --epochs 200 --knn_freq 10 \
  "$@"
