#!/usr/bin/env bash
#SBATCH --job-name=swav_RN50w5_400ep_pretrain
#SBATCH --nodes=16
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=80
#SBATCH --mem=450G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# SwAV, resnet50w5, 400 epochs, 2x224 + 4x96, 128 GPUs x 12 = 1536 images a step. Published linear top-1: 78.5 %.
# The published run asked for GPUs with 32 GB; --checkpoint_activations and --shard make it fit smaller ones.
# No script was published for it: from the paper's appendix, with the resources of w2. Its head has no batch norm.
# Set DATASET_PATH and EXPERIMENT_PATH, and submit from the repository's root; further flags go on the command line.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet/train}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/swav_RN50w5_400ep_pretrain}

exec scripts/launch.sh main_swav.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --nmb_crops 2 4 --size_crops 224 96 --min_scale_crops 0.14 0.05 --max_scale_crops 1 0.14 \
  --crops_for_assign 0 1 --temperature 0.1 --epsilon 0.05 --sinkhorn_iterations 3 --feat_dim 128 \
  --nmb_prototypes 3000 --wd 1e-6 --use_fp16 true \
  --queue_length 1536 --epoch_queue_starts 0 --freeze_prototypes_niters 313 \
  --epochs 400 --batch_size 12 --base_lr 4.8 --final_lr 0.0048 --warmup_epochs 10 --start_warmup 0.3 \
  --arch resnet50w5 --hidden_mlp 10240 --head_bn false --sync_bn apex \
  --ranks 128 --virtual_ranks auto \
  "$@"
