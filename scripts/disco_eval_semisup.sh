#!/usr/bin/env bash
#SBATCH --job-name=disco_eval_semisup
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
# DisCo's evaluation with few labels: as its linear one on a part of the labels, frozen. PERCENT is 1 or 10, SUBSET
# SimCLR's list of it.
# Set DATASET_PATH (the folder that holds train and val), CHECKPOINT and EXPERIMENT_PATH; further flags go on the
# command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/disco_eval_semisup}
CHECKPOINT=${CHECKPOINT:-experiments/disco_pretrain/checkpoint.pth.tar}
PERCENT=${PERCENT:-1}
SUBSET=${SUBSET:-1percent.txt}

exec scripts/launch.sh eval_semisup.py \
  --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  --protocol moco --pretrained "$CHECKPOINT" --learning-rate 3.0 --batch-size 256 --labels_perc "$PERCENT" --subset_file "$SUBSET" \
  "$@"
