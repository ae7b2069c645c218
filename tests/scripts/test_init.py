"""``--init``: what a training starts from, and how gently it goes on."""

import shutil

import main_cwrgp
import main_dino
import main_disco
import main_intl
import main_swav
import main_twist
import main_w2ssl
from src.checkpoints.run_file import read_run
from src.models.backbones import create_backbone
from src.pretraining import initial
from tests.scripts.test_splits import METHODS

import pytest
import torch

MODULES = {m.__name__: m for m in (main_swav, main_twist, main_intl, main_cwrgp, main_disco, main_w2ssl, main_dino)}
HEADS = ("head.", "projection_head.", "projection.", "projection_heads.", "fc_crop.")
# Of a method's state, the moving average of what
COPIES = ("momentum_", "teacher_", "teacher.")


def words(name, data, folder, *more):
    _, line = METHODS[name]
    return [*line.format(own=32).split(), "--data_path", str(data), "--dump_path", str(folder), *map(str, more)]


def train(name, data, folder, *more):
    return MODULES[METHODS[name][0]].main(words(name, data, folder, *more))


@pytest.fixture(scope="module")
def runs(patches, tmp_path_factory):
    """A function that gives the checkpoint of a short run of a method."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            assert train(name, patches / "train", folder, "--max_steps", 2) == 0
            made[name] = folder / "checkpoint.pth.tar"
        return made[name]

    return of


@pytest.fixture
def start(monkeypatch):
    """The state of a method when it has been filled, by name."""
    kept = {}
    fill = initial.Initial.fill

    def watched(self, method):
        fill(self, method)
        kept.update({name: tensor.clone() for name, tensor in method.state_dict().items()})

    monkeypatch.setattr(initial.Initial, "fill", watched)
    return kept


@pytest.mark.parametrize("name", ["swav", "twist-momentum", "intl_m", "byol", "moco", "w2ssl", "dino", "deepcluster"])
def test_a_run_starts_from_one_of_the_same_method(patches, tmp_path, runs, start, name):
    """Backbone and head, and their moving averages; nothing else."""
    source = runs(name)
    assert train(name, patches / "train", tmp_path, "--max_steps", 1, "--init", source) == 0
    before = read_run(source)["state_dict"]
    filled = [n for n in before if n.startswith(("backbone.", *HEADS)) and not n.endswith("num_batches_tracked")]
    assert any(n.startswith(HEADS) for n in filled)
    copies = 0
    for entry in filled:
        torch.testing.assert_close(start[entry], before[entry], rtol=0, atol=0)
        for copy in (f"{kind}{entry}" for kind in COPIES):
            if copy in start:
                torch.testing.assert_close(start[copy], before[entry], rtol=0, atol=0)
                copies += 1
    assert copies == (0 if name in ("swav", "deepcluster") else len(filled))


def test_every_entry_is_accounted_for(patches, tmp_path, runs, capsys):
    source = runs("swav")
    assert train("moco", patches / "train", tmp_path, "--max_steps", 1, "--init", source) == 0
    state = read_run(source)["state_dict"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("init ")]
    backbone = sum(name.startswith("backbone.") for name in state)
    head = sum(name.startswith("projection_head.") for name in state)
    assert said[0].startswith(f"init       resnet18 from {source}: {backbone} entries (step 2 of a swav run)")
    assert f"has {head} entries of other shapes" in said[1]
    assert said[2] == f"init       {len(state) - backbone - head} other entries are not used: prototypes"


def test_a_first_layer_for_other_channels(patches, tmp_path, runs, start):
    assert train("moco", patches / "train", tmp_path, "--max_steps", 1, "--init", runs("swav"), "--channels", 1) == 0
    there = read_run(runs("swav"))["state_dict"]["backbone.conv1.weight"]
    torch.testing.assert_close(start["backbone.conv1.weight"], there.sum(dim=1, keepdim=True))


def test_another_start_is_refused(patches, tmp_path, runs, capsys):
    first = tmp_path / "first.pth"
    shutil.copy(runs("swav"), first)
    data, folder = patches / "train", tmp_path / "run"
    assert train("swav", data, folder, "--max_steps", 2, "--init", first) == 0
    moved = first.rename(tmp_path / "moved.pth")
    assert train("swav", data, folder, "--max_steps", 3, "--init", moved) == 0  # the same weights elsewhere
    for other in ([], ["--init", folder / "checkpoint.pth.tar"]):
        main = MODULES["main_swav"]
        with pytest.raises(initial.UserError, match="init_sha256"):
            main.main(words("swav", data, folder, *other))
    plain = tmp_path / "plain"
    assert train("swav", data, plain, "--max_steps", 1) == 0
    with pytest.raises(initial.UserError, match="init_sha256 nothing -> "):
        train("swav", data, plain, "--init", moved)


def test_what_does_not_fit_is_one_line(patches, tmp_path, runs):
    def refused(said, name, *more):
        with pytest.raises(initial.UserError, match=said) as found:
            train(name, patches / "train", tmp_path / "refused", *more)
        assert "\n" not in str(found.value)

    refused("does not fit this model", "moco", "--init", runs("swav"), "--arch", "resnet34")
    refused("does not exist", "moco", "--init", tmp_path / "none.pth")
    refused("needs a transformer", "moco", "--layer_decay", "0.5")


@pytest.mark.parametrize("name", ["swav", "moco"])
def test_a_frozen_backbone_stays_and_thaws(patches, tmp_path, runs, name):
    """After as many epochs as asked for; its weights do not even decay."""
    source = runs(name)
    kept = read_run(source)["state_dict"]

    def weights(folder):
        state = read_run(folder / "checkpoint.pth.tar")["state_dict"]
        return state["backbone.layer1.0.conv1.weight"], state

    more = ["--init", source, "--freeze_backbone_epochs", 1, "--lr" if name == "moco" else "--base_lr", 0.5]
    assert train(name, patches / "train", tmp_path, *more, "--max_steps", 3) == 0
    frozen, state = weights(tmp_path)
    assert torch.equal(frozen, kept["backbone.layer1.0.conv1.weight"])
    head = next(n for n in state if n.startswith(HEADS) and n.endswith("weight"))
    assert not torch.equal(state[head], kept[head])
    assert train(name, patches / "train", tmp_path, *more) == 0
    assert not torch.equal(weights(tmp_path)[0], frozen)


def rates_of(optimizer, backbone):
    scales = {id(p): group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    return {name: scales[id(parameter)] for name, parameter in backbone.named_parameters()}, scales


class Model(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, torch.nn.Linear(4, 4)


def test_rates_of_layers():
    model = Model(create_backbone("vit_t"))
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr_scale": 2.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    initial.scale_rates(optimizer, model, initial.InitialSettings(lr_backbone_scale=0.1, layer_decay=0.5))
    rates, scales = rates_of(optimizer, model.backbone)
    for block in range(12):
        expected = 0.1 * 0.5 ** (11 - block)
        assert rates[f"blocks.{block}.attn.qkv.weight"] == pytest.approx(expected)
        assert rates[f"blocks.{block}.attn.qkv.bias"] == pytest.approx(2 * expected)
    assert rates["patch_embed.proj.weight"] == pytest.approx(0.1 * 0.5**12)
    assert rates["norm.weight"] == pytest.approx(0.2)
    assert (scales[id(model.head.weight)], scales[id(model.head.bias)]) == (1.0, 2.0)
    assert all(group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0) for group in optimizer.param_groups)
    assert len(scales) == len(list(model.parameters()))


def test_one_rate_for_a_whole_resnet():
    model = Model(create_backbone("resnet18", width=0.0625))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    initial.scale_rates(optimizer, model, initial.InitialSettings(lr_backbone_scale=0.1))
    rates, scales = rates_of(optimizer, model.backbone)
    assert set(rates.values()) == {0.1}
    assert scales[id(model.head.weight)] == 1.0


def test_a_frozen_backbone_leaves_something_to_train():
    model = Model(create_backbone("resnet18", width=0.0625))
    model.head = torch.nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(initial.UserError, match="trains nothing but the backbone"):
        initial.scale_rates(optimizer, model, initial.InitialSettings(freeze_backbone_epochs=1))


def test_rates_stay_as_they_are_without_the_flags():
    model = Model(create_backbone("resnet18", width=0.0625))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    initial.scale_rates(optimizer, model, initial.InitialSettings())
    assert len(optimizer.param_groups) == 1
    assert "lr_scale" not in optimizer.param_groups[0]
