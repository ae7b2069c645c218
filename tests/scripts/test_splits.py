"""Every method resumes on any other number of processes: weights and position carry over, and the run ends."""

import contextlib
import importlib
import io
import shutil

from src.checkpoints.store import read_run
from src.cli import Call
from tests.helpers import on_ranks

import pytest
import torch

pytestmark = pytest.mark.usefixtures("short_resnets")
TINY = (
    "--arch resnet18 --width 0.0625 --stem small --device cpu --tensorboard false --workers 0 --epochs 2 --log_every 1"
)
SWAV = f"{TINY} --size_crops 16 12 --nmb_crops 2 1 --min_scale_crops 0.3 0.1 --max_scale_crops 1 0.3 --hidden_mlp 8"
SWAV += " --feat_dim 8 --nmb_prototypes 4 --warmup_epochs 1 --batch_size {own}"
OFFLINE = f"{SWAV} --nmb_prototypes 3 2"
TWIST = f"{TINY} --size_crops 16 12 --img_size 16 --local_crops_number 1 --dim 4 --hid_dim 8 --batch_size {{own}}"
TWIST += " --bunch_size 32 --warmup_epochs 1 --mme_epochs 1 --sl_warmup_epochs 1"
JOINT = f"{TINY} --crops_size 16 16 --crop_size 16 --head_layers 2 --head_size 8 --emb 64 --bs 32"
CWRGP = f"{JOINT} --w_size 8 --w_eps 0.1 --group 1 --warmup_iters 2"
DISCO = f"{TINY} --crop_size 16 --moco_dim 8 --moco_k 32 --hidden 8 --batch_size 32 --bn_parts 1 --moco_t 0.2 --mlp"
W2SSL = f"{TINY} --crop_size 16 --crop_proj_dim 4 --moco_mlp_dim 8 --batch_size 32 --warmup_epochs 1"
DINO = f"{TINY} --size_crops 16 12 --img_size 16 --out_dim 8 --hidden_dim 8 --bottleneck_dim 4 --batch_size {{own}}"
DINO += " --warmup_epochs 1 --local_crops_number 1"
METHODS = {
    "swav": ("main_swav", SWAV),
    "swav-queue": ("main_swav", f"{SWAV} --queue_length 32 --epoch_queue_starts 0"),
    "deepcluster": ("main_swav", f"{OFFLINE} --method deepcluster-v2"),
    "sela": ("main_swav", f"{OFFLINE} --method sela-v2"),
    "twist": ("main_twist", TWIST),
    "twist-momentum": ("main_twist", f"{TWIST} --use_momentum_encoder 1"),
    "intl": ("main_intl", f"{JOINT} --warmup_eps 1"),
    "intl_m": ("main_intl", f"{JOINT} --warmup_eps 1 --method intl_m"),
    **{
        name: ("main_cwrgp", f"{CWRGP} --method {name}")
        for name in ("cwrgp", "wmse", "contrastive", "byol", "simsiam", "barlowtwins", "vicreg", "zero_icl")
    },
    "moco": ("main_disco", DISCO),
    "w2ssl": ("main_w2ssl", W2SSL),
    "dino": ("main_dino", DINO),
}
SPLITS = [(1, 2), (4, 1)]


def train(name, data, folder, ranks, *more):
    """Runs a script on forked ranks; returns what the first one said."""
    module, line = METHODS[name]
    words = [
        *line.format(own=32 // ranks).split(),
        "--data_path",
        str(data),
        "--dump_path",
        str(folder),
        *map(str, more),
    ]
    words += ["--dist_url", "tcp://127.0.0.1:1"]  # the ranks have met already
    return on_ranks(ranks, _main, module, words)[0]


def _main(module, words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = importlib.import_module(module).main(words)
    return code, said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_no_flag_is_said_to_have_no_effect_that_is_read_later(patches, tmp_path, name, monkeypatch):
    """The warning comes before the first step; nothing may look at a setting for the first time after that."""
    module, line = METHODS[name]
    calls = []
    real = Call.tell_unread
    monkeypatch.setattr(Call, "tell_unread", lambda call: (calls.append(call), real(call)))
    words = [*line.format(own=32).split(), "--data_path", patches / "train", "--dump_path", tmp_path, "--knn_freq", 1,
             "--knn_k", 3, "--val_path", patches / "test"]  # fmt: skip
    assert importlib.import_module(module).main([str(word) for word in words]) == 0
    reads = calls[0].reads
    assert reads.names - reads.told == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_with_any_number_of_processes(patches, tmp_path, name):
    data = patches / "train"
    for before, _ in SPLITS:
        code, said = train(name, data, tmp_path / str(before), before, "--max_steps", 4)
        assert code == 0, said
    for before, after in SPLITS:
        folder = tmp_path / f"{before}-{after}"
        shutil.copytree(tmp_path / str(before), folder)
        start = read_run(folder / "checkpoint.pth.tar")
        code, said = train(name, data, folder, after, "--max_steps", 4)  # what was carried over, before any step
        assert code == 0, said
        code, said = train(name, data, folder, after)
        assert code == 0, said
        assert f"resuming on {after} ranks" in said
        end = read_run(folder / "checkpoint.pth.tar")
        assert (end["step"], end["epoch"], end["world_size"]) == (6, 2, after)
        assert start["state_dict"].keys() == end["state_dict"].keys()
        assert all(torch.isfinite(t).all() for t in end["state_dict"].values() if t.is_floating_point())
        for buffers in (rank["buffers"] for rank in end["per_rank"]):
            assert all(torch.isfinite(t).all() for t in buffers.values() if t.is_floating_point())
