#!/usr/bin/env bash
#SBATCH --job-name=disco_teacher_swav
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
# DisCo with a SwAV teacher (table 6, variants of the teacher's pre-training), ResNet-34. Set TEACHER to the file of
# SwAV, DeepCluster-v2 or SeLa-v2.
# Set DATASET_PATH (the folder that holds train) and EXPERIMENT_PATH; further flags go on the command line. Works
# without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/disco_teacher_swav}
TEACHER=${TEACHER:-/path/to/swav_800ep_pretrain.pth.tar}

exec scripts/launch.sh main_disco.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  -a resnet34 --teacher "$TEACHER" --epochs 200 \
  --mlp --moco_t 0.2 --aug_plus --cos --batch_size 256 --lr 0.03 \
  --ranks 8 --virtual_ranks auto \
  "$@"
