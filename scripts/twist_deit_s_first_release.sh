#!/usr/bin/env bash
#SBATCH --job-name=twist_deit_s_first_release
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=80
#SBATCH --mem=450G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# TWIST, DeiT-S as first released: 2x224 + 6x96, 300 epochs, 16 GPUs x 128 = 2048 images a step. Published linear
# top-1: 75.6 %.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH, and submit from the repository's root; further
# flags go on the command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/twist_deit_s_first_release}

exec scripts/launch.sh main_twist.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --backbone vit_s --dim 4096 --aug multicrop --local_crops_number 6 --batch_size 128 --bunch_size 256 \
  --epochs 300 --mme_epochs 300 --lr 0.0005 --weight_decay 0.06 --weight_decay_end 0.06 \
  --optim admw --lam1 -0.6 --lam2 1.0 --clip_norm 3.0 --use_momentum_encoder 1 --momentum_start 0.996 --momentum_end 1.0 \
  --ranks 16 --virtual_ranks auto \
  "$@"
