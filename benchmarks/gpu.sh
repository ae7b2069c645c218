#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the GPU tests, all benchmarks, and a short training by the published
# crops, whose log lines give images/s and the share of time spent waiting for data. Ends with one table of it all, which
# also goes to gpu.json, or GPU_JSON of the environment, with the card's name.
#   benchmarks/gpu.sh [python]        (default: .venv/bin/python; any environment with torch >= 2.11 does)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
workers=$(nproc)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export BENCHMARK_RECORDS="$out/records.jsonl"
"$python" -m pytest -q -p no:cacheprovider -o addopts="" -o timeout=0 tests/test_gpu.py
"$python" benchmarks/micro.py
"$python" benchmarks/kmeans.py
"$python" benchmarks/step.py --compile
"$python" benchmarks/step.py --method moco intl twist --recipe imagenet
"$python" benchmarks/step.py --methods
"$python" benchmarks/checkpoint.py
"$python" benchmarks/virtual.py --recipe imagenet --method swav moco
"$python" benchmarks/data.py --recipe imagenet small --rounds 5
"$python" benchmarks/pipeline.py --recipe imagenet --workers "$workers"
"$python" benchmarks/pipeline.py --recipe imagenet --workers "$workers" --compile

"$python" -c "
from src.data.patches import cut_patches
print(cut_patches('data/photographs', '$out/patches', size=320, min_contrast=0, max_train=1000))"
"$python" main_swav.py --data_path "$out/patches/train" --dump_path "$out/swav" --device cuda \
    --size_crops 224 96 --nmb_crops 2 6 --min_scale_crops 0.14 0.05 --max_scale_crops 1 0.14 \
    --batch_size 64 --epochs 1000 --warmup_epochs 0 --base_lr 0.15 --workers "$workers" --log_every 10 --max_steps 60
"$python" main_twist.py --data_path "$out/patches" --dump_path "$out/twist" --device cuda --backbone vit_s --optim adamw --lr 3e-4 \
    --local_crops_number 6 --batch_size 64 --bunch_size 64 --act gelu --use_momentum_encoder 1 --clip_norm 3 --epochs 1000 \
    --mme_epochs 1000 --workers "$workers" --log_every 10 --max_steps 60
"$python" main_intl.py --data_path "$out/patches" --dump_path "$out/intl" --device cuda --method intl_m --multi-crop --bs 128 \
    --epochs 1000 --workers "$workers" --log_every 10 --max_steps 60
"$python" main_disco.py --data_path "$out/patches" --dump_path "$out/moco" --device cuda -a resnet50 --mlp --moco-t 0.2 --aug-plus --cos \
    --bn_parts 4 --batch_size 128 --moco_k 8192 --precision auto --epochs 1000 --workers "$workers" --log_every 10 --max_steps 60
"$python" main_disco.py --data_path "$out/patches" --dump_path "$out/disco" --device cuda -a efficientb0 --mlp --moco-t 0.2 --aug-plus --cos \
    --teacher "$out/moco/checkpoint.pth.tar" --distill_norm ref32 --bn_parts 4 --batch_size 128 --moco_k 8192 --precision auto \
    --epochs 1000 --workers "$workers" --log_every 10 --max_steps 60
"$python" main_w2ssl.py --data_path "$out/patches" --dump_path "$out/w2ssl" --device cuda --moco-m-cos --loss_crop 1.0 --batch_size 256 \
    --epochs 1000 --workers "$workers" --log_every 10 --max_steps 60

"$python" benchmarks/summary.py "$BENCHMARK_RECORDS" "${GPU_JSON:-gpu.json}" "$out"/{swav,twist,intl,moco,disco,w2ssl}
