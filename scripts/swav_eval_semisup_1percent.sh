#!/usr/bin/env bash
#SBATCH --job-name=swav_eval_semisup_1percent
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=80
#SBATCH --mem=450G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Fine-tuning with 1 % of ImageNet's labels as SwAV does it: 20 epochs, 8 GPUs x 32 images.
# Set DATASET_PATH (the folder that holds train and val), SUBSET_FILE (SimCLR's 1percent.txt), CHECKPOINT and
# EXPERIMENT_PATH; further flags go on the command line. Works without Slurm, too.
DATASET_PATH=${DATASET_PATH:-/path/to/imagenet}
SUBSET_FILE=${SUBSET_FILE:-1percent.txt}
CHECKPOINT=${CHECKPOINT:-experiments/swav_800ep_pretrain/checkpoint.pth.tar}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/swav_eval_semisup_1percent}

exec scripts/launch.sh eval_semisup.py --protocol swav \
  --data_path "$DATASET_PATH" --pretrained "$CHECKPOINT" --dump_path "$EXPERIMENT_PATH" \
  --labels_perc 1 --subset_file "$SUBSET_FILE" --epochs 20 --batch_size 32 --lr 0.02 --lr_last_layer 5 \
  --decay_epochs 12 16 --gamma 0.2 --wd 0 \
  "$@"
