#!/usr/bin/env bash
#SBATCH --job-name=disco_eval_cifar
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
# DisCo's transfer to CIFAR-10 and CIFAR-100 (DATASET): a linear classifier on frozen features of 224 pixels, 200
# epochs at constant lr 3.
# Set DATASET_PATH (torchvision's root), CHECKPOINT and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/disco_eval_cifar}
CHECKPOINT=${CHECKPOINT:-experiments/disco_pretrain/checkpoint.pth.tar}
DATASET=${DATASET:-cifar10}

exec scripts/launch.sh eval_linear.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --protocol cifar --dataset "$DATASET" --pretrained "$CHECKPOINT" --lr 3.0 --epochs 200 \
  "$@"
