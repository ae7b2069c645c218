#!/usr/bin/env bash
#SBATCH --job-name=intl_eval_semisup_10percent
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=450G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Fine-tuning with 10 % of ImageNet's labels as INTL does it: 20 epochs at constant learning rates, 256 images a step.
# Of the two-view run of 800 epochs the backbone's is 0.006.
# Set DATASET_PATH (the folder that holds train and val), SUBSET_FILE (SimCLR's 10percent.txt), CHECKPOINT and
# EXPERIMENT_PATH; further flags go on the command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
SUBSET_FILE=${SUBSET_FILE:-10percent.txt}
CHECKPOINT=${CHECKPOINT:-experiments/intl_ep800_multi-crop_ema/resnet50.pth}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/intl_eval_semisup_10percent}

exec scripts/launch.sh eval_semisup.py --protocol intl \
  --data_path "$DATASET_PATH" --pretrained "$CHECKPOINT" --dump_path "$EXPERIMENT_PATH" \
  --train-percent 10 --subset_file "$SUBSET_FILE" --weights finetune --lr-backbone 0.004 --lr-classifier 0.2 \
  --batch_size 256 --epochs 20 \
  "$@"
