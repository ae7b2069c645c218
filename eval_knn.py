"""Judges a backbone by k-nearest-neighbour classification of its frozen features.

python eval_knn.py --data_path /path/to/imagenet --pretrained runs/swav/checkpoint.pth.tar
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from src import cli
from src.checkpoints.files import write_atomically
from src.data.loading import loader_of
from src.errors import UserError
from src.evaluation.features import extract_features
from src.evaluation.knn import knn_predict, nearest_majority, over_ranks, top_k_accuracy
from src.evaluation.subject import open_subject, open_weights
from src.parallel import collectives, launch


def build_parser() -> cli.Parser:
    parser = cli.Parser("k-nearest-neighbour classification of frozen features.")
    cli.add_evaluation_arguments(parser)
    group = parser.add_argument_group("kNN")
    group.add_argument(
        "--rule",
        default="weighted",
        choices=["weighted", "majority"],
        help="weighted: cosine similarity, nearer neighbours count more; majority: Euclidean distance of raw features, "
        "one vote each, as in INTL and CW-RGP",
    )
    group.add_argument(
        "--k", type=cli.positive, nargs="+", help="numbers of neighbours; default: 10 20 200 (weighted), 5 (majority)"
    )
    group.add_argument("--temperature", type=float, default=0.07, help="votes weigh exp(cosine / temperature)")
    group.add_argument("--raw_pixels", action="store_true", help="compare pixels, not features: the plainest baseline")
    group.add_argument("--batch_size", type=cli.positive, default=256, help="images for each process")
    cli.add_device_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.temperature <= 0:
        raise UserError("--temperature must be positive")
    args.k = args.k or {"weighted": [10, 20, 200], "majority": [5]}[args.rule]
    world = launch.start(args.device, args.dist_url)
    subject = open_subject(args, open_weights(args), world.device)
    backbone, description = subject.backbone, subject.description
    if args.raw_pixels:
        backbone, description = nn.Flatten(), "raw pixels"
    if max(args.k) > len(subject.train):
        raise UserError(f"--k {max(args.k)}: there are only {len(subject.train)} training images")

    (train_features, train_labels), (test_features, test_labels) = (
        extract_features(
            backbone,
            loader_of(source, subject.view, args.batch_size, args.workers, world.device),
            subject.prepare,
            name,
        )
        for name, source in (("training images", subject.train), ("test images", subject.test))
    )
    common = {"ks": args.k, "num_classes": subject.num_classes}
    if args.rule == "majority":
        predict = partial(nearest_majority, train_features, train_labels, **common)
    else:
        predict = partial(knn_predict, train_features, train_labels, **common, temperature=args.temperature)
    votes = over_ranks(predict, test_features)
    results = {
        str(k): {"top1": top_k_accuracy(scores, test_labels, 1), "top5": top_k_accuracy(scores, test_labels, 5)}
        for k, scores in votes.items()
    }
    if world.is_main:
        print(f"{description}; {len(subject.train)} training and {len(subject.test)} test images")
        for k, result in results.items():
            print(f"{k:>5} nearest neighbours: top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %")
        content = {"what": description, "data_path": args.data_path, "rule": args.rule, "knn": results}
        text = json.dumps(content, indent=2).encode()
        write_atomically(Path(args.dump_path) / "knn.json", lambda file: file.write(text))
    collectives.barrier()
    return 0


if __name__ == "__main__":
    cli.run(main)
