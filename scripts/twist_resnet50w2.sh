#!/usr/bin/env bash
#SBATCH --job-name=twist_resnet50w2
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=80
#SBATCH --mem=450G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# TWIST, ResNet-50 of double width, 2x224 + 12x96, 200 epochs and 50 of self-labelling, 32 GPUs x 60 = 1920 images a
# step. Published linear top-1: 77.7 %.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH, and submit from the repository's root; further
# flags go on the command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/twist_resnet50w2}

exec scripts/launch.sh main_twist.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --backbone resnet50w2 --dim 4096 --aug multicrop --local_crops_number 12 --batch_size 60 --bunch_size 240 \
  --epochs 250 --mme_epochs 200 \
  --ranks 32 --virtual_ranks auto \
  "$@"
