#!/usr/bin/env bash
#SBATCH --job-name=disco_seed
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
# SEED, which DisCo is compared with (tables 1 and 4): one view, temperatures 0.2 and 1e-4. STUDENT is efficientb0,
# efficientb1, mobilenetv3, resnet18 or resnet34; TEACHER the file of its frozen teacher. Published linear top-1 of
# EfficientNet-B0 with MoCo-v2's ResNet-50: 61.3 %.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/disco_seed}
STUDENT=${STUDENT:-efficientb0}
TEACHER=${TEACHER:-/path/to/moco_resnet50.pth.tar}

exec scripts/launch.sh main_disco.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --method seed -a "$STUDENT" --teacher "$TEACHER" --epochs 200 \
  --mlp --moco_t 0.2 --aug_plus --cos --batch_size 256 --lr 0.03 \
  --ranks 8 --virtual_ranks auto \
  "$@"
