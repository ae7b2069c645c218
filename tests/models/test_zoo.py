"""Published weights come by name: once, whole, checked; what cannot come is said in one line."""

import functools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import eval_knn
import hubconf
from src.data import remote
from src.errors import UserError
from src.models import zoo
from src.models.backbones import create_backbone
from src.models.pretrained import load_backbone
from src.models.teacher import Teacher
from tests.checkpoints.test_layouts import prefixed
from tests.data.servers import serving
from tests.helpers import ROOT

import pytest
import torch

NAME = "swav_800ep_pretrain"
ONE = torch.ones(1)


@functools.cache
def state_of():
    torch.manual_seed(0)
    return create_backbone("resnet18").state_dict()


def swav_file():
    head = {"projection_head.0.weight": torch.zeros(8, 512), "projection_head.0.bias": torch.zeros(8)}
    return prefixed({**state_of(), **head, "prototypes.weight": ONE}, "module.")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with SwAV's files, which the zoo takes for theirs, all of them ResNet-18s; the cache is empty."""
    (tmp_path / "served").mkdir()
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(zoo, "PIECE", 1_000_000)
    with serving(tmp_path / "served") as found:
        for table in (zoo.ZOO, hubconf._zoo.ZOO):
            for name, entry in list(table.items()):
                here = entry if entry.is_page else entry._replace(address=f"{found.url}/{entry.file}")
                monkeypatch.setitem(table, name, here if "vit" in entry.arch else here._replace(arch="resnet18"))
        torch.save(swav_file(), tmp_path / "served" / f"{NAME}.pth.tar")
        found.folder = tmp_path / "served"
        found.kept = tmp_path / "hub" / "checkpoints" / f"{NAME}.pth.tar"
        yield found


def test_a_name_is_downloaded_once_and_read(server):
    loaded = load_backbone(NAME)
    assert all(torch.equal(t, state_of()[n]) for n, t in loaded.backbone.state_dict().items())
    assert loaded.family == "swav"
    assert server.kept.read_bytes() == (server.folder / f"{NAME}.pth.tar").read_bytes()
    asked = len(server.faults.log)
    assert asked > 2  # piece by piece
    load_backbone(NAME)
    assert len(server.faults.log) == asked
    assert not list(server.kept.parent.glob("*.part"))


def test_what_broke_off_goes_on_where_it_was(server):
    whole = (server.folder / f"{NAME}.pth.tar").read_bytes()
    server.faults.kinds = ("cut",) * 99
    with pytest.raises(UserError, match="could not be read in 6 tries"):
        zoo.located(NAME)
    server.faults.kinds = ()
    (part,) = server.kept.parent.glob("*.part")
    part.write_bytes(whole[:2_500_000])
    server.faults.log.clear()
    assert zoo.located(NAME).read_bytes() == whole
    parts = [part for _, _, part in server.faults.log if part]
    assert parts[0].startswith("bytes=2500000-")


def test_the_rest_of_another_version_is_not_put_behind_it(server):
    server.kept.parent.mkdir(parents=True)
    server.kept.with_name(f"{server.kept.name}.123.part").write_bytes(b"x" * 2_500_000)
    assert zoo.located(NAME).read_bytes() == (server.folder / f"{NAME}.pth.tar").read_bytes()
    assert not list(server.kept.parent.glob("*.part"))


@pytest.mark.parametrize("kinds", [("error", "cut"), ("cut", "cut", "error")])
def test_a_server_in_trouble_is_asked_again(server, kinds):
    server.faults.kinds = kinds
    assert zoo.located(NAME).read_bytes() == (server.folder / f"{NAME}.pth.tar").read_bytes()


def test_a_server_that_sends_whole_files_will_do(server):
    server.options["ranges"] = False
    assert zoo.located(NAME).read_bytes() == (server.folder / f"{NAME}.pth.tar").read_bytes()


def test_processes_that_start_together_download_once(server):
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(zoo.located, [NAME] * 4))
    assert set(paths) == {server.kept}
    pieces = [part for method, _, part in server.faults.log if method == "GET"]
    assert len(pieces) == len(set(pieces))


def test_what_is_wrong_gets_one_line(server, monkeypatch):
    (server.folder / f"{NAME}.pth.tar").rename(server.folder / "elsewhere")
    with pytest.raises(UserError, match=f"{NAME} is not at .* any more"):
        zoo.located(NAME)
    (server.folder / "elsewhere").rename(server.folder / f"{NAME}.pth.tar")
    right = zoo.ZOO[NAME]
    monkeypatch.setitem(zoo.ZOO, NAME, right._replace(sha256="0" * 64))
    with pytest.raises(UserError, match=r"is not what was published: its SHA-256 is [0-9a-f]{64}, not 0"):
        zoo.located(NAME)
    assert not server.kept.exists()
    assert not list(server.kept.parent.glob("*.part"))
    monkeypatch.setitem(zoo.ZOO, NAME, right._replace(sha256=zoo.digest_of(server.folder / f"{NAME}.pth.tar")))
    zoo.located(NAME)
    monkeypatch.setitem(zoo.ZOO, NAME, right)
    content = bytearray(server.kept.read_bytes())
    content[5000] ^= 1
    server.kept.write_bytes(content)
    with pytest.raises(UserError, match="is damaged, or another file than swav_800ep_pretrain: delete it"):
        zoo.located(NAME)
    with pytest.raises(UserError, match="did you mean the published swav_400ep_pretrain"):
        zoo.located("swav_400ep_pretrained")
    wide = create_backbone("resnet18", width=0.5).state_dict()
    torch.save(prefixed(wide, "module."), server.folder / "swav_100ep_pretrain.pth.tar")
    with pytest.raises(UserError, match=r"holds a resnet18 of width 0\.5, and swav_100ep_pretrain is a resnet18"):
        load_backbone("swav_100ep_pretrain")
    (server.folder / "selav2_400ep_pretrain.pth.tar").write_bytes(b"<html>moved</html>")
    with pytest.raises(UserError, match="sends no checkpoint, it may have moved"):
        load_backbone("selav2_400ep_pretrain")
    assert not list(server.kept.parent.glob("selav2*pth.tar"))


def test_a_file_behind_a_page_is_asked_for_and_used_once_it_is_there(server):
    entry = zoo.ZOO["twist_deit_s_300ep"]
    expected = server.kept.parent / entry.file
    with pytest.raises(UserError, match=re.escape(f"by hand: from {entry.address}, saved as {expected}")):
        load_backbone(entry.name)
    torch.manual_seed(0)
    vit = create_backbone("vit_s")
    torch.save(vit.state_dict(), expected)
    loaded = load_backbone(entry.name)  # a transformer, whose architecture the table knows
    assert loaded.family == "twist"
    assert all(torch.equal(t, vit.state_dict()[n]) for n, t in loaded.backbone.state_dict().items())


LAYOUTS = {
    "swav_400ep_pretrain": swav_file,
    "deepclusterv2_800ep_pretrain": swav_file,
    "selav2_400ep_2x224_pretrain": swav_file,
    "twist_resnet50_850ep": lambda: {"backbone": state_of()},
    "twist_resnet50_850ep_full": lambda: {
        "model": {**prefixed(state_of(), "backbone."), "projection_heads.norm.running_var": ONE},
        "backbone": state_of(), "epoch": 3,
    },
    "intl_100ep": lambda: {"state_dict": prefixed(state_of(), "module.backbone."), "epoch": 3},
    "intl_800ep_full": lambda: {
        "state_dict": {**prefixed(state_of(), "module.backbone."), "module.projection.0.weight": ONE}, "epoch": 3,
    },
    "w2ssl_200ep_bs1024": lambda: {
        "state_dict": prefixed({**state_of(), "fc_crop.0.weight": ONE}, "module.base_encoder.")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_by_its_name_and_by_the_hub(server, name):
    entry = zoo.ZOO[name]
    content = LAYOUTS[name]()
    if entry.is_page:
        server.kept.parent.mkdir(parents=True)
    torch.save(content, (server.kept.parent if entry.is_page else server.folder) / entry.file)
    loaded = load_backbone(name)
    assert loaded.family == entry.method
    for backbone in (loaded.backbone, torch.hub.load(str(ROOT), name, source="local")):
        assert all(torch.equal(t, state_of()[n]) for n, t in backbone.state_dict().items())
    assert not loaded.backbone.training


def test_evaluations_and_teachers_take_names(server, patches, tmp_path, capsys):
    words = ["--data_path", patches, "--dump_path", tmp_path, "--workers", 0, "--device", "cpu", "--pretrained", NAME]
    assert eval_knn.main([*map(str, words), "--k", "3", "--crop_size", "32"]) == 0
    assert f"from {server.kept}" in capsys.readouterr().out
    assert Teacher(NAME).width == 8


def test_the_page_shows_the_table():
    """``docs/zoo.md`` is made of the table: ``python -c "from src.models import zoo; print(zoo.markdown())"``."""
    assert zoo.markdown() in (ROOT / "docs" / "zoo.md").read_text()


def test_all_files_of_the_readmes_are_there():
    names = {
        *(f"swav_{epochs}ep_pretrain" for epochs in (100, 200, 400, 800)),
        "swav_200ep_bs256_pretrain", "swav_400ep_bs256_pretrain", "swav_400ep_2x224_pretrain",
        "deepclusterv2_800ep_pretrain", "deepclusterv2_400ep_pretrain", "deepclusterv2_400ep_2x224_pretrain",
        "selav2_400ep_pretrain", "selav2_400ep_2x224_pretrain", *(f"swav_RN50w{w}_400ep_pretrain" for w in (2, 4, 5)),
    }  # fmt: skip
    assert len(names) == 15
    assert names <= zoo.ZOO.keys()
    assert len({entry.file for entry in zoo.ZOO.values()}) == len(zoo.ZOO)
    assert all(Path(entry.address).name == entry.file for entry in zoo.ZOO.values() if not entry.is_page)
    pages = [entry.address for entry in zoo.ZOO.values() if entry.is_page and entry.method != "w2ssl"]
    assert len(set(pages)) == len(pages) == 6 * 2 + 4 * 3
