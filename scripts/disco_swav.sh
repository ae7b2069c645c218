#!/usr/bin/env bash
#SBATCH --job-name=disco_swav
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
# DisCo on SwAV (table 5): EfficientNet-B0 and SwAV's ResNet-50. Set TEACHER to its file.
# Set DATASET_PATH (the train folder itself) and EXPERIMENT_PATH; further flags go on the command line. Works without
# Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet/train}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/disco_swav}
TEACHER=${TEACHER:-/path/to/swav_800ep_pretrain.pth.tar}

exec scripts/launch.sh main_swav.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --base_lr 0.6 --final_lr 0.0006 --warmup_epochs 0 --crops_for_assign 0 1 --size_crops 224 96 --nmb_crops 2 6 \
  --min_scale_crops 0.14 0.05 --max_scale_crops 1. 0.14 --use_fp16 true --freeze_prototypes_niters 5005 \
  --queue_length 3840 --epoch_queue_starts 15 --sync_bn pytorch --temperature 0.1 --epsilon 0.05 \
  --sinkhorn_iterations 3 --feat_dim 128 --nmb_prototypes 3000 --epochs 200 --batch_size 64 --wd 0.000001 \
  --arch efficientb0 --teacher "$TEACHER" \
  --ranks 8 --virtual_ranks auto \
  "$@"
