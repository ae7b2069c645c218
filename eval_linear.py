"""Judges a backbone by linear classification of its frozen features, by the protocol of any of the papers.

    torchrun --nproc_per_node=8 eval_linear.py --data_path /path/to/imagenet --pretrained runs/swav/checkpoint.pth.tar
    python eval_linear.py /path/to/imagenet resnet50.pth --lr-classifier 0.3
    python eval_linear.py -a resnet50 --learning-rate 3.0 --batch-size 256 --pretrained moco.pth.tar /path/to/imagenet

Several learning rates train one classifier each on the same forward passes.
"""

from collections.abc import Sequence

from src import cli
from src.evaluation import classification
from src.evaluation.classifier_settings import LINEAR_SCRIPT as SCRIPT
from src.evaluation.protocols import LINEAR


def main(argv: Sequence[str] | None = None) -> int:
    return classification.run(SCRIPT, LINEAR, "linear", argv)


if __name__ == "__main__":
    cli.run(main)
