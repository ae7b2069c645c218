#!/usr/bin/env bash
# SwAV on one GPU: swav_200ep_bs256_pretrain with all 256 images of a step on it (--checkpoint_activations and 16 bits
# let them fit; with less memory halve --batch_size, --base_lr and --final_lr and keep the queue).
# Set DATASET_PATH and EXPERIMENT_PATH; further flags go on the command line.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet/train}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/swav_200ep_single_gpu}
export NPROC=1

exec scripts/launch.sh main_swav.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --nmb_crops 2 6 --size_crops 224 96 --min_scale_crops 0.14 0.05 --max_scale_crops 1 0.14 \
  --crops_for_assign 0 1 --temperature 0.1 --epsilon 0.05 --sinkhorn_iterations 3 --feat_dim 128 \
  --nmb_prototypes 3000 --wd 1e-6 --use_fp16 true \
  --queue_length 3840 --epoch_queue_starts 15 --freeze_prototypes_niters 5005 \
  --epochs 200 --batch_size 256 --base_lr 0.6 --final_lr 0.0006 --warmup_epochs 0 \
  --arch resnet50 --hidden_mlp 2048 --sync_bn none --checkpoint_activations \
  "$@"
