"""The real detectron2: configurations, weights, equal activations, a short training and evaluation.

Where its Python files are: an installed detectron2, or the folder that `make detectron2` unpacks.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from detection import convert_to_detectron2
from tests.detection.families import FAMILIES, save
from tests.helpers import ROOT

import pytest

HERE = Path(__file__).resolve().parent
UNPACKED = next(iter(sorted((ROOT / ".detectron2").glob("pb1-detectron2-*"))), None)
INSTALLED = importlib.util.find_spec("detectron2") is not None
pytestmark = [
    pytest.mark.skipif(
        not (INSTALLED or UNPACKED or os.environ.get("REQUIRE_DETECTRON2")),
        reason="no detectron2: `make detectron2` unpacks one for tests",
    ),
    pytest.mark.slow,
]
CONFIGS = ROOT / "detection" / "configs"


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT)] if INSTALLED else [str(HERE / "environment"), str(UNPACKED), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


class Detectron2:
    """Programs that import detectron2, each in a fork of one process that has done so (``server.py``)."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.detection.server"],
            cwd=ROOT,
            env=environment(DETECTRON2_DATASETS=str(root)),  # read when detectron2 is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        files = [self.folder / "out.txt", self.folder / "err.txt"]
        request = {"words": [str(word) for word in words], "folder": str(folder)}
        request |= {"out": str(files[0]), "err": str(files[1])}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(path.read_text() for path in files))

    def says(self, code: str, *arguments: object) -> str:
        """The last line that a program prints."""
        (self.folder / "program.py").write_text(code)
        result = self.run(self.folder / "program.py", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()[-1]

    def train_net(self, *arguments: object, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        return self.run(ROOT / "detection" / "train_net.py", *arguments, folder=folder)


@pytest.fixture(scope="module")
def detectron2(data, tmp_path_factory):
    found = Detectron2(data, tmp_path_factory.mktemp("programs"))
    yield found
    found.process.stdin.close()
    found.process.wait()


# ------------------------------------------------------------------------------------------------ configurations

VOC_SIZES = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
COCO_SIZES = [640, 672, 704, 736, 768, 800]
VOC_SETS = {"DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"], "DATASETS.TEST": ["voc_2007_test"]}
COCO_SETS = {"DATASETS.TRAIN": ["coco_2017_train"], "DATASETS.TEST": ["coco_2017_val"]}
RGB = {
    "MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530], "MODEL.PIXEL_STD": [58.395, 57.120, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False, "INPUT.FORMAT": "RGB", "MODEL.WEIGHTS": "output.pkl",
}  # fmt: skip
CAFFE = {
    "MODEL.PIXEL_MEAN": [103.530, 116.280, 123.675], "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}  # fmt: skip
C4 = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000, "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"], "TEST.PRECISE_BN.ENABLED": True, "MODEL.RESNETS.DEPTH": 50,
    "INPUT.MIN_SIZE_TEST": 800,
}  # fmt: skip
MOCO = {**C4, "SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02}
VOC = {
    **VOC_SETS, "MODEL.MASK_ON": False, "MODEL.ROI_HEADS.NUM_CLASSES": 20, "INPUT.MIN_SIZE_TRAIN": VOC_SIZES,
    "SOLVER.STEPS": [18000, 22000], "SOLVER.MAX_ITER": 24000, "SOLVER.WARMUP_ITERS": 100,
}  # fmt: skip
COCO1 = {
    **COCO_SETS, "MODEL.MASK_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 80, "INPUT.MIN_SIZE_TRAIN": COCO_SIZES,
    "SOLVER.STEPS": [60000, 80000], "SOLVER.MAX_ITER": 90000,
}  # fmt: skip
COCO2 = {**COCO1, "SOLVER.STEPS": [120000, 160000], "SOLVER.MAX_ITER": 180000}
DISCO = {**C4, "SOLVER.IMS_PER_BATCH": 32, "SOLVER.BASE_LR": 0.01}
DISCO_VOC = {**VOC, "INPUT.MIN_SIZE_TRAIN": [400, *VOC_SIZES], "SOLVER.MAX_ITER": 48000, "SOLVER.WARMUP_ITERS": 200}
LEVELS = ["res2", "res3", "res4", "res5"]
FPN = {
    **RGB, "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.OUT_FEATURES": LEVELS, "MODEL.FPN.IN_FEATURES": LEVELS, "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000, "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000, "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"], "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4, "MODEL.ROI_BOX_HEAD.NUM_FC": 1, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN", "TEST.PRECISE_BN.ENABLED": True,
}  # fmt: skip
TWIST = {**FPN, "SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "MODEL.ROI_MASK_HEAD.NORM": "SyncBN"}
W2SSL = {
    **FPN, **COCO2, "MODEL.MASK_ON": False, "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000, "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.BASE_LR": 0.01, "MODEL.ROI_MASK_HEAD.NORM": "", "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "OUTPUT_DIR": "outputs/jigclu_det_coco",
}  # fmt: skip
SMALL = {"MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
TABLE = {
    "moco/pascal_voc_R_50_C4_24k": {**MOCO, **VOC},
    "moco/pascal_voc_R_50_C4_24k_moco": {**MOCO, **VOC, **RGB},
    "moco/coco_R_50_C4_1x": {**MOCO, **COCO1},
    "moco/coco_R_50_C4_1x_moco": {**MOCO, **COCO1, **RGB},
    "moco/coco_R_50_C4_2x": {**MOCO, **COCO2},
    "moco/coco_R_50_C4_2x_moco": {**MOCO, **COCO2, **RGB},
    "disco/pascal_voc_R_50_C4_24k": {**DISCO, **DISCO_VOC},
    "disco/pascal_voc_R_50_C4_24k_moco": {**DISCO, **DISCO_VOC, **RGB, "OUTPUT_DIR": "../ckpt/"},
    "disco/pascal_voc_R_50_C4_24000_moco": {**DISCO, **DISCO_VOC, **RGB, "SOLVER.MAX_ITER": 24000},
    "disco/pascal_voc_R_50_C4_24k_moco_as_released": {
        **DISCO, **DISCO_VOC, **CAFFE, "INPUT.FORMAT": "RGB", "MODEL.WEIGHTS": "output.pkl",
    },
    "disco/coco_R_50_C4_2x": {**DISCO, **COCO2},
    "disco/coco_R_50_C4_2x_moco": {**DISCO, **COCO2, **RGB},
    "twist/R_50_FPN_1x_infomin": {**TWIST, **COCO1, "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
                                  "MODEL.ROI_MASK_HEAD.NUM_CONV": 4, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
                                  "SOLVER.WARMUP_ITERS": 1000, "INPUT.MIN_SIZE_TEST": 800},
    "twist/pascal_voc_R_50_FPN_24k_infomin": {**TWIST, **VOC, "INPUT.MIN_SIZE_TEST": 800},
    **{f"twist/pascal_voc_R_{d}_FPN_24k": {**TWIST, **VOC, **SMALL, "MODEL.RESNETS.DEPTH": d} for d in (18, 34)},
    **{f"twist/R_{d}_FPN_1x": {**TWIST, **COCO1, **SMALL, "MODEL.RESNETS.DEPTH": d} for d in (18, 34)},
    "w2ssl/R50-JigClu": W2SSL,
    "w2ssl/mask_r50": {**W2SSL, "MODEL.MASK_ON": True, "OUTPUT_DIR": "outputs/mask_jigclu_det_coco"},
    "w2ssl/super": {**W2SSL, "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
                    "OUTPUT_DIR": "outputs/super_jigclu_det_coco"},
    "w2ssl/super_matching": {**CAFFE, "INPUT.FORMAT": "BGR",
                             "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl"},
    "w2ssl/voc-R50-JigClu": {**W2SSL, **VOC, "OUTPUT_DIR": "outputs/jigclu_det_voc/", "INPUT.MIN_SIZE_TEST": 800},
    "w2ssl/R50-key": {
        "MODEL.KEYPOINT_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 1, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500, "DATASETS.TRAIN": ["keypoints_coco_2017_train"],
        "DATASETS.TEST": ["keypoints_coco_2017_val"], "MODEL.RESNETS.DEPTH": 50,
    },
    "w2ssl/R50-pan": {
        "MODEL.META_ARCHITECTURE": "PanopticFPN", "MODEL.MASK_ON": True, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5,
        "DATASETS.TRAIN": ["coco_2017_train_panoptic_separated"], "DATASETS.TEST": ["coco_2017_val_panoptic_separated"],
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    },
}  # fmt: skip

RESOLVE = """
import json, sys
from detectron2.config import get_cfg
found = {}
for path in sys.argv[1:]:
    cfg = get_cfg()
    cfg.merge_from_file(path)
    flat = {}
    def walk(prefix, node):
        for key, value in node.items():
            if isinstance(value, dict):
                walk(prefix + key + ".", value)
            else:
                flat[prefix + key] = value
    walk("", cfg)
    found[path] = flat
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def resolved(detectron2):
    """Every configuration as detectron2 reads it."""
    return json.loads(detectron2.says(RESOLVE, *(CONFIGS / f"{name}.yaml" for name in TABLE)))


def test_every_configuration_is_in_the_table():
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")}
    assert {name for name in files if "Base" not in name} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_resolved_values_are_the_published_ones(resolved, name):
    found = resolved[str(CONFIGS / f"{name}.yaml")]
    assert {key: found[key] for key in TABLE[name]} == TABLE[name]


# ------------------------------------------------------------------------------------------------ equal activations

ACTIVATIONS = """
import sys
import torch
sys.path.insert(0, "detection")
sys.argv, arguments = sys.argv[:1], sys.argv[1:]
import train_net
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
config, weights, image, out = arguments[:4]
cfg = get_cfg()
cfg.merge_from_file(config)
cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights, *arguments[4:]])
for line in train_net.check_weights(cfg):
    print(line)
model = build_model(cfg).eval()
DetectionCheckpointer(model).load(weights)
pixels = torch.load(image)                       # (3, h, w) uint8, RGB
if cfg.INPUT.FORMAT == "BGR":
    pixels = pixels.flip(0)
with torch.no_grad():
    batch = model.preprocess_image([{"image": pixels.float()}])
    bottom = getattr(model.backbone, "bottom_up", model.backbone)
    found = dict(bottom(batch.tensor))
    if hasattr(model.roi_heads, "res5"):
        norm = getattr(model.roi_heads.res5, "norm", None)
        blocks = [block for name, block in model.roi_heads.res5.named_children() if name != "norm"]
        found["res5"] = torch.nn.Sequential(*blocks)(found["res4"])
torch.save(found, out)
"""


def activations(detectron2, tmp_path, config, weights, pixels, *options):
    import torch

    torch.save(pixels, tmp_path / "pixels.pt")
    detectron2.says(ACTIVATIONS, CONFIGS / config, weights, tmp_path / "pixels.pt", tmp_path / "found.pt", *options)
    return torch.load(tmp_path / "found.pt")


def ours(backbone, pixels):
    """The stages' outputs, by the preprocessing of our evaluations."""
    import torch
    from torch.nn import functional as F

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        x = ((pixels.float() / 255 - mean) / std)[None]
        x = F.max_pool2d(F.relu(backbone.bn1(backbone.conv1(x))), 3, stride=2, padding=1)
        found = {}
        for stage in (1, 2, 3, 4):
            x = getattr(backbone, f"layer{stage}")(x)
            found[f"res{stage + 1}"] = x
    return found


def pixels():
    import torch

    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def converted(family, tmp_path, arch="resnet50"):
    backbone = save(family, tmp_path / "checkpoint.pth.tar", arch)
    assert convert_to_detectron2.main([str(tmp_path / "checkpoint.pth.tar"), str(tmp_path / "out.pkl")]) == 0
    return backbone, tmp_path / "out.pkl"


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_ours(detectron2, family, tmp_path):
    """Pixel order, mean and deviation, stride, names: all that a transfer can get wrong in silence."""
    import torch

    backbone, weights = converted(family, tmp_path)
    expected = ours(backbone, pixels())
    config = (
        "moco/pascal_voc_R_50_C4_24k_moco.yaml"
        if family in ("moco", "intl", "ours")
        else "twist/R_50_FPN_1x_infomin.yaml"
    )
    if family == "w2ssl":
        config = "w2ssl/R50-JigClu.yaml"
    if family == "disco":
        config = "disco/coco_R_50_C4_2x_moco.yaml"
    found = activations(detectron2, tmp_path, config, weights, pixels())
    assert {"res4", "res5"} <= found.keys()
    for stage, value in found.items():
        torch.testing.assert_close(value, expected[stage], rtol=1e-3, atol=1e-3)


BUILD = """
import sys
sys.path.insert(0, "detection")
sys.argv, arguments = sys.argv[:1], sys.argv[1:]
import json
import train_net
from detectron2.config import get_cfg
said = {}
for argument in arguments:
    config, weights = argument.split("=")
    cfg = get_cfg()
    cfg.merge_from_file(config)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights])
    said[config] = train_net.check_weights(cfg)
print(json.dumps(said))
"""


def test_every_configuration_builds_a_model_whose_backbone_is_filled(detectron2, tmp_path):
    weights = {}
    for depth in (18, 34, 50):
        (tmp_path / str(depth)).mkdir()
        weights[depth] = converted("moco", tmp_path / str(depth), f"resnet{depth}")[1]
    configs = {CONFIGS / f"{name}.yaml": values.get("MODEL.RESNETS.DEPTH", 50) for name, values in TABLE.items()}
    said = json.loads(detectron2.says(BUILD, *(f"{path}={weights[depth]}" for path, depth in configs.items())))
    assert set(said) == {str(path) for path in configs}
    for config, lines in said.items():
        assert "fills all" in lines[0], config
        if "C4" in config:
            assert "it fills 50 of 50 entries of the head's res5" in lines[1], config


def test_a_wrong_pixel_order_would_show(detectron2, tmp_path):
    import torch

    backbone, weights = converted("swav", tmp_path)
    found = activations(detectron2, tmp_path, "disco/pascal_voc_R_50_C4_24k_moco_as_released.yaml", weights, pixels())
    assert not torch.allclose(found["res4"], ours(backbone, pixels())["res4"], atol=0.05)


def test_basic_blocks_fill_an_fpn(detectron2, tmp_path):
    import torch

    backbone, weights = converted("disco", tmp_path, "resnet18")
    found = activations(detectron2, tmp_path, "twist/pascal_voc_R_18_FPN_24k.yaml", weights, pixels())
    for stage, value in ours(backbone, pixels()).items():
        torch.testing.assert_close(found[stage], value, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------ training

QUICK = [
    "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.001",
    "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "50", "MODEL.RPN.PRE_NMS_TOPK_TEST", "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "10", "DATALOADER.NUM_WORKERS", "0", "TEST.PRECISE_BN.NUM_ITER", "1",
]  # fmt: skip


@pytest.mark.parametrize(("config", "family"), [
    ("moco/pascal_voc_R_50_C4_24k_moco", "intl"),
    ("moco/coco_R_50_C4_2x_moco", "moco"),
    ("twist/pascal_voc_R_50_FPN_24k_infomin", "twist"),
    ("twist/R_50_FPN_1x_infomin", "swav"),
    ("w2ssl/mask_r50", "w2ssl"),
])  # fmt: skip
def test_a_short_training_ends_in_an_ap(detectron2, config, family, tmp_path):
    _, weights = converted(family, tmp_path)
    result = detectron2.train_net("--config-file", CONFIGS / f"{config}.yaml", "MODEL.WEIGHTS", weights, "OUTPUT_DIR",
                                  tmp_path / "out", *QUICK)  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "fills all" in result.stdout
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP" in line for line in metrics), metrics
    if family == "twist":
        assert "paper: twist, resnet50, boxes on voc: AP 58.1  AP50 84.2  AP75 65.4" in result.stdout
    if family not in ("intl", "swav"):
        return
    again = detectron2.train_net("--config-file", CONFIGS / f"{config}.yaml", "--resume", "--eval-only",
                                 "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "out", *QUICK)  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]


@pytest.mark.parametrize(("config", "depth"), [("coco_R_50_C4_2x_moco", 18), ("pascal_voc_R_50_C4_24k_moco", 34)])
def test_discos_commands_for_small_resnets(detectron2, tmp_path, config, depth):
    """The published way: C4, whose head has bottlenecks that basic blocks do not fill. It is said, and it starts."""
    _, weights = converted("disco", tmp_path, f"resnet{depth}")
    config = CONFIGS / "disco" / f"{config}.yaml"
    small = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.WEIGHTS", weights]
    result = detectron2.train_net("--config-file", config, "--resume", *small, "OUTPUT_DIR", tmp_path / "out", *QUICK)
    assert result.returncode == 0, result.stderr[-3000:]
    (filled,) = re.findall(r"fills (\d+) of 50 entries of the head's res5", result.stdout)
    assert 0 < int(filled) < 50


BAD = [
    (["--config-file", "nowhere.yaml"], True, "does not exist"),
    (["--config-file", "{configs}/moco/coco_R_50_C4_2x_moco.yaml", "MODEL.NOTHING", "1"], True, "not usable"),
    (
        ["--config-file", "{configs}/moco/coco_R_50_C4_2x_moco.yaml", "MODEL.WEIGHTS", "{tmp}/no.pkl"],
        True,
        "does not exist",
    ),
    (
        ["--config-file", "{configs}/moco/coco_R_50_C4_2x_moco.yaml", "MODEL.WEIGHTS", "{tmp}/other.pkl"],
        True,
        "not a pickle",
    ),
    (
        ["--config-file", "{configs}/moco/coco_R_50_C4_2x_moco.yaml", "MODEL.WEIGHTS", "{tmp}/part.pkl"],
        True,
        "of the backbone's",
    ),
    (["--config-file", "{configs}/moco/coco_R_50_C4_2x_moco.yaml"], False, "DETECTRON2_DATASETS is not set"),
    (
        ["--config-file", "{configs}/moco/coco_R_50_C4_2x_moco.yaml", "DATASETS.TRAIN", "('mine',)"],
        True,
        "no data set 'mine'",
    ),
]


@pytest.mark.parametrize(("arguments", "with_data", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input(detectron2, tmp_path, arguments, with_data, message):
    import pickle

    (tmp_path / "other.pkl").write_bytes(b"hello")
    _, weights = converted("swav", tmp_path, "resnet18")
    content = pickle.loads(weights.read_bytes())
    (tmp_path / "part.pkl").write_bytes(pickle.dumps({**content, "model": dict(list(content["model"].items())[:20])}))
    words = [word.format(configs=CONFIGS, tmp=tmp_path) for word in arguments]
    if with_data:
        result = detectron2.train_net(*words, folder=tmp_path)
    else:  # what is not set when detectron2 is imported
        command = [sys.executable, "-W", "ignore", ROOT / "detection" / "train_net.py", *words]
        environ = {name: value for name, value in environment().items() if name != "DETECTRON2_DATASETS"}
        result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert "Traceback" not in result.stderr
