#!/usr/bin/env bash
#SBATCH --job-name=twist_unsupervised_classification
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=80
#SBATCH --mem=450G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# TWIST, ResNet-50 with 1000 classes, for unsupervised classification (eval_cluster.py), 800 epochs. The paper
# publishes the result (NMI 74.4, ACC 40.5) and no more of the recipe than the classes: the rest is that of two views.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH, and submit from the repository's root; further
# flags go on the command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/twist_unsupervised_classification}

exec scripts/launch.sh main_twist.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --backbone resnet50 --dim 1000 --aug barlow --batch_size 256 --bunch_size 256 --epochs 800 --mme_epochs 800 \
  --ranks 8 --virtual_ranks auto \
  "$@"
