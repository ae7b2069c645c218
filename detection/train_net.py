"""Trains and judges a detector of detectron2 on a converted backbone, by the papers' configurations.

    python detection/train_net.py --config-file detection/configs/moco/pascal_voc_R_50_C4_24k_moco.yaml --num-gpus 8 \\
        MODEL.WEIGHTS swav.pkl

Its other flags (--resume, --eval-only, --num-machines, ...) and KEY VALUE pairs at the end are detectron2's own. Data
sets are looked for below DETECTRON2_DATASETS. Everything is checked before the processes are started.
"""

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from detection.names import read_pickle
from src import cli
from src.errors import UserError
from src.evaluation.reported import reported_detection

try:
    from detectron2 import _C
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
    from detectron2.evaluation import (
        COCOEvaluator,
        COCOPanopticEvaluator,
        DatasetEvaluators,
        PascalVOCDetectionEvaluator,
    )
    from detectron2.layers import get_norm
    from detectron2.modeling import build_model
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
except ImportError as error:
    print(
        f"error: detectron2 cannot be imported ({error}); install it, or use detection/train_torchvision.py",
        file=sys.stderr,
    )
    sys.exit(2)


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """The C4 head with one more norm after res5, as MoCo (arXiv 1911.05722) trains it."""

    @classmethod
    def _build_res5_block(cls, cfg: "CfgNode") -> Any:
        blocks, channels = super()._build_res5_block(cfg)
        blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return blocks, channels


class Trainer(DefaultTrainer):
    """detectron2's, with the evaluator that each data set asks for."""

    @classmethod
    def build_evaluator(cls, cfg: "CfgNode", dataset_name: str, output_folder: str | None = None) -> Any:
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
        kind = MetadataCatalog.get(dataset_name).evaluator_type
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        # the fast evaluation is compiled; builds without it have the one of pycocotools
        fast = hasattr(_C, "COCOevalEvaluateImages")
        coco = COCOEvaluator(dataset_name, output_dir=folder, use_fast_impl=fast)
        if kind == "coco_panoptic_seg":
            return DatasetEvaluators([coco, COCOPanopticEvaluator(dataset_name, folder)])
        return coco


def resolved(args: Any) -> "CfgNode":
    """The configuration of ``--config-file`` with the options of the command line."""
    if not args.config_file or not Path(args.config_file).exists():
        raise UserError(f"--config-file {args.config_file!r} does not exist: see detection/configs")
    cfg = get_cfg()
    try:
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
    except (KeyError, AssertionError, ValueError) as error:
        raise UserError(f"the configuration is not usable: {str(error).splitlines()[0]}") from None
    cfg.freeze()
    return cfg


def check_data(cfg: "CfgNode", evaluation_only: bool) -> None:
    """Refuses data sets that are not there."""
    root = os.environ.get("DETECTRON2_DATASETS")
    for name in (*(() if evaluation_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            raise UserError(f"detectron2 knows no data set {name!r}")
        data = MetadataCatalog.get(name)
        places = [data.get(key) for key in ("json_file", "image_root", "dirname") if data.get(key)]
        missing = next((place for place in places if not Path(place).exists()), None)
        if missing:
            where = f"DETECTRON2_DATASETS is {root}" if root else "DETECTRON2_DATASETS is not set"
            raise UserError(
                f"{name} is not there: {missing} does not exist ({where}; it is the folder that holds coco or VOC2007)"
            )


def check_weights(cfg: "CfgNode") -> list[str]:
    """What the model finds in MODEL.WEIGHTS; raises UserError when a part of the backbone is not in it."""
    path = cfg.MODEL.WEIGHTS
    if "://" in path or not path:
        return [f"weights    {path or 'none: everything starts at random'}"]
    if not Path(path).exists():
        raise UserError(f"MODEL.WEIGHTS {path} does not exist: detection/convert_to_detectron2.py writes it")
    if Path(path).suffix != ".pkl":
        return [f"weights    {path}, read by detectron2"]
    found = read_pickle(path).model
    on_cpu = cfg.clone()
    on_cpu.defrost()
    on_cpu.MODEL.DEVICE = "cpu"
    names = build_model(on_cpu).state_dict()
    backbone = [n for n in names if n.startswith("backbone.") and "fpn_" not in n and "num_batches" not in n]
    head = [n for n in names if n.startswith("roi_heads.res5.") and "res5.norm" not in n and "num_batches" not in n]

    def fits(name: str) -> bool:
        short = name.removeprefix("backbone.").removeprefix("bottom_up.").replace("roi_heads.res5", "res5")
        return short in found and tuple(found[short].shape) == tuple(names[name].shape)

    absent = [name for name in backbone if not fits(name)]
    if absent:
        raise UserError(
            f"{path} fills {len(backbone) - len(absent)} of the backbone's {len(backbone)} entries (not {absent[0]}): "
            "is MODEL.RESNETS.DEPTH right?"
        )
    lines = [f"weights    {path} fills all {len(backbone)} entries of the backbone"]
    if head:
        lines.append(f"weights    it fills {sum(map(fits, head))} of {len(head)} entries of the head's res5")
    return lines


def train(args: Any) -> Any:
    """What each process does."""
    cfg = resolved(args)
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main(argv: Any = None) -> int:
    args = default_argument_parser(__doc__).parse_args(argv)
    cfg = resolved(args)
    check_data(cfg, args.eval_only)
    for line in check_weights(cfg):
        print(line)
    launch(
        train,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    if args.machine_rank == 0:
        for line in reported(cfg):
            print(line)
    return 0


def reported(cfg: "CfgNode") -> list[str]:
    """What the weights' paper reports for this detector's data, if the weights tell their method."""
    path = Path(cfg.MODEL.WEIGHTS)
    method = read_pickle(path).method if path.suffix == ".pkl" and path.exists() else ""
    data = next((name for name in ("voc", "coco") if any(name in test for test in cfg.DATASETS.TEST)), "")
    kinds = ("boxes", "masks") if cfg.MODEL.MASK_ON else ("boxes",)
    return [reported_detection(method, kind, f"resnet{cfg.MODEL.RESNETS.DEPTH}", data) for kind in kinds if data]


if __name__ == "__main__":
    cli.run(main)
