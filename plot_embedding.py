"""Draws where a backbone puts the images of some classes, in two dimensions: t-SNE, UMAP or PCA of its features.

    python plot_embedding.py --data_path /path/to/imagenet --pretrained disco.pth.tar --first_class 5 --out disco.pdf

The picture of DisCo's paper is classes 5 to 14 of ImageNet's validation images, the first 50 of each, by t-SNE.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src import cli
from src.checkpoints.files import write_atomically
from src.data.datasets import Subset
from src.data.loading import loader_of
from src.errors import UserError
from src.evaluation.features import extract_features
from src.evaluation.subject import open_subject, open_weights
from src.parallel import collectives, launch
from src.plots import PLANES, embedding_map


def build_parser() -> cli.Parser:
    parser = cli.Parser("Draws a backbone's features in two dimensions.")
    cli.add_evaluation_arguments(parser)
    group = parser.add_argument_group("picture")
    group.add_argument("--projection", default="tsne", choices=PLANES, help="umap needs the package umap-learn")
    group.add_argument("--normalize", type=cli.boolean, default=False, help="project unit vectors, not raw features")
    group.add_argument("--first_class", type=cli.non_negative, default=0, help="number of the first class drawn")
    group.add_argument("--nmb_classes", type=cli.positive, default=10, help="how many from there on")
    group.add_argument("--per_class", type=cli.positive, default=50, help="test images of each, the first ones")
    group.add_argument("--out", default="embedding.png", help="the picture: .png, .pdf or .svg; in --dump_path")
    group.add_argument(
        "--save_features", action="store_true", help="also write the drawn images' features.npy and labels.npy"
    )
    group.add_argument("--batch_size", type=cli.positive, default=256, help="images for each process")
    cli.add_device_arguments(parser)
    parser.set_defaults(seed=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if Path(args.out).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {args.out}: expected a name that ends in .png, .pdf or .svg")
    world = launch.start(args.device, args.dist_url)
    subject = open_subject(args, open_weights(args), world.device)
    classes = range(args.first_class, args.first_class + args.nmb_classes)
    if classes[-1] >= subject.num_classes:
        raise UserError(f"there are {subject.num_classes} classes: --first_class or --nmb_classes is too large")
    labels_of_all = np.asarray(subject.test.labels)
    chosen = np.concatenate([np.flatnonzero(labels_of_all == label)[: args.per_class] for label in classes])
    if len(chosen) < 4:
        raise UserError(f"there are only {len(chosen)} test images of these classes")
    images = Subset(subject.test, sorted(chosen.tolist()))
    loader = loader_of(images, subject.view, args.batch_size, args.workers, world.device)
    features, labels = extract_features(subject.backbone, loader, subject.prepare, "images")
    if world.is_main:
        folder = Path(args.dump_path)
        names = [subject.test.classes[label] for label in classes]
        embedding_map(
            features,
            labels - args.first_class,
            names,
            folder / args.out,
            title=f"{args.projection} of {len(chosen)} images",
            seed=args.seed,
            projection=args.projection,
            normalize=args.normalize,
        )
        if args.save_features:
            write_atomically(folder / "features.npy", lambda file: np.save(file, features.cpu().numpy()))
            write_atomically(folder / "labels.npy", lambda file: np.save(file, labels.cpu().numpy()))
        print(subject.description)
        print(f"drew {len(chosen)} test images of {len(names)} classes: {folder / args.out}")
    collectives.barrier()
    return 0


if __name__ == "__main__":
    cli.run(main)
