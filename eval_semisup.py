"""Judges a backbone by fine-tuning it with few labels, by the protocol of any of the papers.

    torchrun --nproc_per_node=8 eval_semisup.py --data_path /path/to/imagenet --labels_perc 1 \\
        --subset_file 1percent.txt --pretrained runs/swav/checkpoint.pth.tar
    python eval_semisup.py /path/to/imagenet resnet50.pth --weights finetune --train-perc 1 --lr-backbone 0.005 ...
"""

from collections.abc import Sequence

from src import cli
from src.evaluation import classification
from src.evaluation.classifier_settings import SEMISUP_SCRIPT as SCRIPT
from src.evaluation.protocols import SEMISUP


def main(argv: Sequence[str] | None = None) -> int:
    return classification.run(SCRIPT, SEMISUP, "semisup", argv)


if __name__ == "__main__":
    cli.run(main)
