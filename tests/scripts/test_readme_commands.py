"""Users of the originals find their commands: every line of the five READMEs, with other names of scripts and paths."""

import importlib
import re
import shlex
from pathlib import Path

import hubconf
from src.errors import UserError
from src.models.backbones import create_backbone
from tests.helpers import ROOT
from tests.steps import make_teacher

import pytest
import torch

LINES = [
    line.split(" | ", 1)
    for line in (Path(__file__).parent / "readme_commands.txt").read_text().splitlines()
    if not line.startswith("#")
]
# What a shell does by itself, or what this project has no need for
SHELL = ("cp ", "cd ", "export ", "pip install")
# README, the original's script, flags that tell -> ours
OURS = (
    ("swav", "main_swav.py", "", "main_swav.py"),
    ("swav", "eval_linear.py", "", "eval_linear.py"),
    ("swav", "eval_semisup.py", "", "eval_semisup.py"),
    ("twist", "train.py", "", "main_twist.py"),
    ("twist", "evaluate.py", "--weights finetune", "eval_semisup.py"),
    ("twist", "evaluate.py", "", "eval_linear.py"),
    ("twist", "evaluate_vitlinear.py", "", "eval_linear.py"),
    ("twist", "detection/convert-pretrain-to-detectron2.py", "", "detection/convert_to_detectron2.py"),
    ("twist", "train_net.py", "", "detection/train_net.py"),
    ("intl", "main.py", "", "main_intl.py"),
    ("intl", "evaluate.py", "--weights finetune", "eval_semisup.py"),
    ("intl", "evaluate.py", "", "eval_linear.py"),
    ("w2ssl", "main_moco.py", "", "main_w2ssl.py"),
    ("w2ssl", "main_lincls.py", "", "eval_linear.py"),
    ("disco", "main_moco.py", "", "main_disco.py"),
    ("disco", "main.py", "", "main_disco.py"),
    ("disco", "main_moco_distill_rkd.py", "", "main_disco.py --method rkd"),
    ("disco", "main_lincls.py", "", "eval_linear.py"),
    ("disco", "yt_main_lincls.py", "", "eval_linear.py"),
    ("disco", "main_lincls_semi.py", "", "eval_semisup.py"),
    ("disco", "cifar_main_lincls.py", "", "eval_linear.py"),
    ("disco", "main_swav.py", "", "main_swav.py"),
    ("disco", "main_swav_distill.py", "", "main_swav.py"),
    ("disco", "eval_linear.py", "", "eval_linear.py"),
    ("disco", "convert-pretrain-to-detectron2.py", "", "detection/convert_to_detectron2.py"),
    ("disco", "train_net.py", "", "detection/train_net.py"),
    ("disco", "imagenet_1_fraction.py", "", "scripts/make_fraction.py"),
    ("disco", "draw.py", "", "plot_embedding.py"),
)
CONFIGS = {
    "voc_fpn_1fc/": "detection/configs/twist/", "infomin_configs/": "detection/configs/twist/",
    "configs/": "detection/configs/disco/",
}  # fmt: skip


def words_of(command):
    """The words behind the launcher; the redirections and variables of the shell are left out."""
    command = re.sub(r"\[your [^\]]*\]", "/path/to/imagenet", command).partition("2>&1")[0]
    words = shlex.split(command.replace("${WORKER_NUM}", "2").replace("${MACHINE_ID}", "0"))
    while words and not words[0].endswith(".py"):
        words.pop(0)
    return words


def ours(readme, command):
    """Our script, and the words for it."""
    script, *words = words_of(command)
    mapped = next((new for name, old, tell, new in OURS if (name, old) == (readme, script) and tell in command), None)
    assert mapped is not None, f"{readme}: nothing of ours stands for {script}"
    new, *flags = mapped.split()
    return new, [*flags, *words]


PROGRAMS = [
    (readme, command)
    for readme, command in LINES
    if ".py" in command and not command.startswith("sbatch") and "run_with_submitit" not in command
]


def module_of(script):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def test_no_line_is_skipped():
    """Each is a program's, a script that is here, an entry point of the hub, another project's, or the shell's."""
    for readme, command in LINES:
        if (readme, command) in PROGRAMS:
            ours(readme, command)
        elif command.startswith("sbatch "):
            assert (ROOT / command.split()[1]).exists()
        elif "torch.hub.load" in command:
            assert callable(getattr(hubconf, re.search(r"'(\w+)'\)", command)[1]))
        elif "run_with_submitit" in command:  # DETR's
            assert "--lr_backbone 5e-5" in (ROOT / "docs" / "detection.md").read_text()
        else:
            assert command.startswith(SHELL), command
    assert len(PROGRAMS) > 50


@pytest.mark.parametrize(("readme", "command"), PROGRAMS, ids=[f"{i}-{r}" for i, (r, _) in enumerate(PROGRAMS)])
def test_every_command_is_understood(readme, command):
    script, words = ours(readme, command)
    if script == "detection/train_net.py":  # detectron2's own parser reads the rest
        config = words[words.index("--config-file") + 1]
        theirs = next(prefix for prefix in CONFIGS if config.startswith(prefix))
        assert (ROOT / (CONFIGS[theirs] + config.removeprefix(theirs))).exists()
        return
    if script == "scripts/make_fraction.py":
        words += ["--data_path", "/x", "--subset_file", "1percent.txt", "--out", "/y"]
    if script == "plot_embedding.py" or "--hidden 1280 2>&1 | tee" in command:  # their paths are in the file; forgotten
        words += ["--data_path", "/x"]
    module_of(script).SCRIPT.parse(words)


# ------------------------------------------------------------------------------------------- a first step of each

SMALL = "--arch resnet18 --workers 0 --device cpu"
STEP = {
    "main_swav.py": f"{SMALL} --width 0.125 --size_crops 32 16 --batch_size 4 --nmb_prototypes 8 --hidden_mlp 8 "
    "--feat_dim 8 --queue_length 0 --sync_bn no --max_steps 1",
    "main_twist.py": f"{SMALL} --width 0.125 --img_size 32 --size_crops 32 16 --local_crops_number 1 --batch-size 4 "
    "--bunch-size 4 --dim 8 --hid_dim 8 --max_steps 1",
    "main_intl.py": f"{SMALL} --width 0.125 --crop_size 32 --crops_size 32 16 --nmb_crops 1 1 --bs 32 --emb 64 "
    "--head_size 16 --max_steps 1",
    "main_w2ssl.py": f"{SMALL} --width 0.125 --crop_size 32 --batch-size 8 --moco-dim 16 --moco-mlp-dim 16 "
    "--max_steps 1",
    "main_disco.py": f"{SMALL} --width 0.125 --crop_size 32 --batch-size 8 --moco_k 16 --moco_dim 16 --hidden 16 "
    "--bn_parts 1 --max_steps 1",
    "eval_linear.py": f"{SMALL} --crop_size 32 --batch_size 8 --max_steps 1",
    "eval_semisup.py": f"{SMALL} --crop_size 32 --batch_size 8 --max_steps 1",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(patches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_teacher(patches, folder)
    return folder


STARTED = set()  # words that were started before: many commands differ in names of networks only


@pytest.mark.slow
@pytest.mark.parametrize(("readme", "command"), PROGRAMS, ids=[f"{i}-{r}" for i, (r, _) in enumerate(PROGRAMS)])
def test_every_command_makes_a_first_step(patches, runs, tmp_path, readme, command):
    script, words = ours(readme, command)
    if script == "detection/train_net.py":
        pytest.skip("tests/detection/test_detectron2.py starts each of these, where there is a detectron2")
    if script == "detection/convert_to_detectron2.py":
        torch.save(create_backbone("resnet18").state_dict(), tmp_path / "in.pth")
        words = [str(tmp_path / "in.pth"), str(tmp_path / "out.pkl")]
        assert module_of(script).main(words) == 0
        return
    if script == "scripts/make_fraction.py":
        words += list_of(patches, tmp_path, round(96 * int(words[-1]) / 100))
        assert module_of(script).main(words) == 0
        return
    if script == "plot_embedding.py":
        words = ["--data_path", str(patches), "--out", str(tmp_path / "a.png"), "--device", "cpu", "--workers", "0"]
        words += ["--pretrained", str(runs / "moco" / "checkpoint.pth.tar"), "--nmb_classes", "3"]
        assert module_of(script).main(words) == 0
        return
    words = [place(word, patches, runs) for word in words]
    words += shlex.split(STEP[script])
    if "--teacher" in words:
        words += ["--teacher_arch", "resnet18"]
    if "main_swav_distill.py" in command:
        words += ["--feat_dim", "16"]  # the teacher's
    words += ["--dump_path", str(tmp_path / "run")] + (["--dataset", "folder"] if "--dataset" in words else [])
    if "--data_path" not in words and not any(word == str(patches) for word in words):
        words += ["--data_path", str(patches)]
    key = tuple(word for word in words if str(tmp_path) not in word)
    if key not in STARTED:
        STARTED.add(key)
        assert not module_of(script).main(words)


def list_of(patches, folder, count):
    """Flags for a list of so many images."""
    names = sorted(f"{path.parent.name}/{path.name}" for path in (patches / "train").rglob("*.png"))
    (folder / "list.txt").write_text("\n".join(names[:count]))
    return ["--data_path", str(patches), "--subset_file", str(folder / "list.txt"), "--out", str(folder / "out")]


def place(word, patches, runs):
    """A path of ours in the place of one of theirs."""
    if re.search(r"\.(pth|tar)$|MODELPATH", word):
        return str(runs / "moco" / "checkpoint.pth.tar")
    if word in ("/dev/shm/train", "/path/to/imagenet/train"):
        return str(patches / "train")
    if word in ("/dev/shm", "/dev/shm/", "/path/to/imagenet", "/path/to/imagenet/", "${DATAPATH}"):
        return str(patches)
    if word.startswith("${OUTPUT}"):
        return str(runs / "out")
    return word


def test_a_list_of_another_share_is_refused(patches, tmp_path):
    words = list_of(patches, tmp_path, 10)
    fraction = module_of("scripts/make_fraction.py")
    with pytest.raises(UserError, match="names 10 of 96 images, 10 %, not 1"):
        fraction.main(words)
    assert fraction.main([*words, "--ratio", "10"]) == 0
    assert sum(1 for _ in (tmp_path / "out" / "train").rglob("*.png")) == 10
    assert (tmp_path / "out" / "val").is_dir()
    with pytest.raises(UserError, match="exists"):
        fraction.main([*words, "--ratio", "10"])
