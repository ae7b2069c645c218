#!/usr/bin/env bash
#SBATCH --job-name=deepclusterv2_400ep_2x224_pretrain
#SBATCH --nodes=8
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=450G
#SBATCH --time=25:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# DeepCluster-v2, resnet50, 400 epochs, 2x224, 64 GPUs x 64 = 4096 images a step. Published linear top-1: 70.2 %.
# Set DATASET_PATH and EXPERIMENT_PATH, and submit from the repository's root; further flags go on the command line.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet/train}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/deepclusterv2_400ep_2x224_pretrain}

exec scripts/launch.sh main_swav.py --method deepcluster-v2 \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --nmb_crops 2 --size_crops 224 --min_scale_crops 0.08 --max_scale_crops 1 \
  --crops_for_assign 0 1 --temperature 0.1 --feat_dim 128 --nmb_prototypes 3000 3000 3000 --wd 1e-6 \
  --freeze_prototypes_niters 300000 \
  --epochs 400 --batch_size 64 --base_lr 4.8 --final_lr 0.0048 --warmup_epochs 10 --start_warmup 0.3 \
  --arch resnet50 --hidden_mlp 2048 --sync_bn apex \
  --ranks 64 --virtual_ranks auto \
  "$@"
