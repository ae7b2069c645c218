#!/usr/bin/env bash
#SBATCH --job-name=small
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=72:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# A method on small data, with ResNet-18, on one GPU or a CPU:
#
#   bash scripts/small.sh byol cifar10 [further flags]        the flags are in scripts/small_recipes.txt
#
# Methods: intl cwrgp2 cwrgp4 wmse simclr byol simsiam barlowtwins vicreg zero_icl on cifar10 cifar100 stl10 tiny_in in100;
# twist moco disco w2ssl on cifar10 cifar100. Set DATASET_PATH to the set's root (torchvision's; --download fetches it),
# EXPERIMENT_PATH, and for disco TEACHER.
set -euo pipefail
table=scripts/small_recipes.txt
method=${1:-} data=${2:-}
of() {  # the words behind the third one, of lines of a kind that begin with so much
    awk -v kind="$1" -v a="$2" -v b="$3" \
        '$1 == kind && $2 == a && $3 == b { for (i = 4; i <= NF; i++) printf "%s ", $i }' "$table"
}
family=$(awk -v name="$method" '$1 == "method" && $2 == name { print $3 }' "$table")
if [ -z "$family" ] || [ -z "$(of set "$family" "$data")" ]; then
    echo "usage: scripts/small.sh METHOD SET [flags]; methods: $(awk '$1 == "method" { printf "%s ", $2 }' "$table")" >&2
    echo "sets: ${family:+of $method: }$(awk -v f="${family:-joint}" '$1 == "set" && $2 == f { printf "%s ", $3 }' "$table")" >&2
    exit 2
fi
shift 2
export NPROC=${NPROC:-1}
DATASET_PATH=${DATASET_PATH:-/path/to/data}
EXPERIMENT_PATH=${EXPERIMENT_PATH:-experiments/${method}_$data}
script=$(awk -v f="$family" '$1 == "script" && $2 == f { print $3 }' "$table")
if [ "$method" = disco ]; then
    set -- --teacher "${TEACHER:-/path/to/moco_resnet50.pth.tar}" "$@"
fi

# shellcheck disable=SC2046  # words without spaces, to be split
exec scripts/launch.sh "$script" --data_path "$DATASET_PATH" --dump_path "$EXPERIMENT_PATH" \
  $(of set "$family" "$data") $(of method "$method" "$family") $(of both "$method" "$data") --knn_freq 50 --knn_k 5 "$@"
