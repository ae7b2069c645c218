"""embed.py: files that hold what the network gives, whatever was killed, and a page that a browser understands."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import embed
from src.checkpoints.weights import write_weights
from src.embedding import chunks
from src.embedding.inside import as_colours, attention_of_heads, last_map
from src.embedding.neighbours import cluster, near_duplicates, nearest
from src.errors import UserError
from src.models.backbones import BackboneSpec, create_backbone
from src.models.pretrained import random_backbone
from tests.helpers import free_port, run

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from PIL import Image

NETWORK = ["--arch", "resnet18", "--width", "0.0625", "--stem", "small", "--crop_size", "16", "--resize", "16"]
SMALL = [*NETWORK, "--workers", "0", "--batch_size", "8", "--clusters", "3", "--projection", "pca"]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def embedded(*words: object) -> int:
    return embed.main([str(word) for word in words])


def page_of(folder: Path) -> dict:
    text = (folder / "index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def one(patches, tmp_path_factory) -> Path:
    """An embedding of the training patches."""
    folder = tmp_path_factory.mktemp("embed") / "one"
    assert embedded(patches / "train", *SMALL, "--dump_path", folder) == 0
    return folder


@pytest.fixture
def odd(patches, tmp_path) -> Path:
    """A folder without classes: names that could break a page, a broken file, the same image twice, once mirrored."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for number, path in enumerate(sorted((patches / "train").glob("*/*.png"))[::6]):
        shutil.copy(path, folder / f"{number:02d}.png")
    shutil.copy(folder / "03.png", folder / "<script>alert(1)<%script>'\"&.png")
    with Image.open(folder / "03.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "a newline\nin it.png")
    shutil.copy(folder / "04.png", os.fsencode(folder) + b"/no utf-8 \xff.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


# ------------------------------------------------------------------ files


def test_the_files_hold_what_the_network_gives(one, patches):
    features, rows = np.load(one / "features.npy"), np.load(one / "rows.npy")
    table = pyarrow.parquet.read_table(one / "features.parquet")
    paths = sorted(path.relative_to(patches / "train") for path in (patches / "train").glob("*/*.png"))
    assert features.shape == (96, 32)
    assert rows.tolist() == list(range(96))
    assert table.column_names == ["path", "label", "class", "vector"]
    assert table["path"].to_pylist() == [str(path) for path in paths]
    assert table["class"].to_pylist() == [path.parts[0] for path in paths]
    assert table["label"].to_pylist() == [n for n in range(4) for _ in range(24)]
    assert np.array_equal(np.array(table["vector"].to_pylist(), dtype=np.float32), features)
    told = json.loads((one / "embedding.json").read_text())
    assert (told["rows"], told["unreadable"], told["width"]) == (96, 0, 32)
    assert not (one / "unreadable.txt").exists()
    assert not (one / "parts").exists()
    # by hand: one image, resized and normalised, through the same network
    backbone = random_backbone(BackboneSpec("resnet18", 0.0625, "small"), 31).eval()
    with Image.open(patches / "train" / paths[40]) as image:
        levels = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    shown = torch.from_numpy((levels - [0.485, 0.456, 0.406]) / [0.228, 0.224, 0.225]).permute(2, 0, 1).float()
    with torch.no_grad():
        assert np.allclose(backbone(shown[None])[0].numpy(), features[40], atol=1e-4)


def die_at_the_second_chunk(monkeypatch):
    write = chunks.Parts.write

    def dies(self, number, chunk):
        if number:
            raise KeyboardInterrupt
        write(self, number, chunk)

    monkeypatch.setattr(chunks.Parts, "write", dies)


def test_a_killed_one_goes_on_and_ends_the_same(one, patches, tmp_path, monkeypatch, capsys):
    words = [patches / "train", *SMALL, "--dump_path", tmp_path / "two"]
    write = chunks.Parts.write
    die_at_the_second_chunk(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embedded(*words)
    assert [path.name for path in (tmp_path / "two" / "parts").iterdir()] == ["000000.pt"]
    written = []
    monkeypatch.setattr(
        chunks.Parts, "write", lambda self, number, chunk: (written.append(number), write(self, number, chunk))
    )
    assert embedded(*words) == 0
    assert written == [1]
    assert "1 of 2 chunks were made before" in capsys.readouterr().out
    for name in ("features.npy", "pixels.npy", "rows.npy"):
        assert (tmp_path / "two" / name).read_bytes() == (one / name).read_bytes()
    # once more: nothing is computed
    monkeypatch.setattr(chunks, "extract", None)
    assert embedded(*words) == 0


def test_two_processes_and_one_that_goes_on_alone(one, patches, tmp_path):
    words = ["embed.py", patches / "train", *SMALL, "--dump_path", tmp_path / "two", "--device", "cpu"]
    done = run(*words, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("look at") == 1
    found = np.load(tmp_path / "two" / "features.npy")
    assert np.allclose(found, np.load(one / "features.npy"), atol=1e-5)
    assert (tmp_path / "two" / "rows.npy").read_bytes() == (one / "rows.npy").read_bytes()


def test_a_damaged_part_is_made_again(patches, tmp_path, monkeypatch):
    words = [patches / "train", *SMALL, "--dump_path", tmp_path, "--page", "false"]
    monkeypatch.setattr(embed, "finish", lambda folder, parts: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embedded(*words)
    monkeypatch.undo()
    part = tmp_path / "parts" / "000001.pt"
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(UserError, match="it is removed: the same command makes it again"):
        embedded(*words)
    assert embedded(*words) == 0
    assert len(np.load(tmp_path / "features.npy")) == 96


def test_other_weights_are_not_mixed_in(one, patches, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    words = [patches / "train", *SMALL, "--dump_path", folder, "--page", "false"]
    with pytest.raises(UserError, match=r"holds other features: backbone_sha256 .*; choose another --dump_path"):
        embedded(*words, "--seed", 32)
    with pytest.raises(UserError, match="holds other features: half"):
        embedded(*words, "--half")
    with pytest.raises(UserError, match="other list"):
        embedded(patches / "test", *words[1:])
    with pytest.raises(UserError, match="stem small -> small_pool"):
        embedded(*words, "--stem", "small_pool")
    assert (folder / "index.html").exists()
    assert embedded(*words, "--half", "--overwrite") == 0
    assert not (folder / "index.html").exists()  # nor any picture of what was there before
    assert not list(folder.glob("*.png"))
    halves = np.load(folder / "features.npy")
    assert halves.dtype == np.float16
    assert np.allclose(halves, np.load(one / "features.npy"), atol=1e-2)
    assert pyarrow.parquet.read_table(folder / "features.parquet")["vector"].to_pylist()[5] == halves[5].tolist()


def test_overwriting_goes_on_after_a_kill(one, patches, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    words = [patches / "train", *SMALL, "--dump_path", folder, "--page", "false", "--seed", 32, "--overwrite"]
    die_at_the_second_chunk(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embedded(*words)
    assert not (folder / "features.npy").exists()
    monkeypatch.undo()
    assert embedded(*words) == 0
    assert "1 of 2 chunks were made before" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", '"abc"', '{"x": 1}', "{", ""])
def test_a_damaged_description_is_one_line(content, one, patches, tmp_path):
    shutil.copytree(one, tmp_path / "one")
    (tmp_path / "one" / "embedding.json").write_text(content)
    with pytest.raises(UserError, match=r"embedding.json cannot be read: choose another --dump_path"):
        embedded(patches / "train", *SMALL, "--dump_path", tmp_path / "one")


@pytest.mark.parametrize("name", ["features.npy", "features.parquet", "rows.npy"])
@pytest.mark.parametrize("kept", [0, 100])
def test_damaged_files_are_noticed(name, kept, one, patches, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:kept])
    words = [patches / "train", *SMALL, "--dump_path", folder, "--page", "false"]
    if name == "features.parquet":
        assert embedded(*words) == 0
        assert len(pyarrow.parquet.read_table(folder / name)) == 96
    else:
        with pytest.raises(UserError, match="say --overwrite to make it again"):
            embedded(*words)


def test_features_that_are_not_finite_are_not_written(patches, tmp_path):
    state = random_backbone(BackboneSpec("resnet18", 0.0625, "small"), 3).state_dict()
    for factor, words, said in (
        (1e30, [], "are not finite"),
        (1e6, ["--half"], "do not fit into 16 bits: go without --half"),
    ):
        name = tmp_path / f"{factor:g}.pth"
        changed = {**state, "layer4.1.bn2.weight": state["layer4.1.bn2.weight"] * factor}
        changed["layer4.0.bn2.weight"] = state["layer4.0.bn2.weight"] * (factor if factor > 1e10 else 1)
        write_weights(name, changed, {"arch": "resnet18", "width": 0.0625, "stem": "small"})
        with pytest.raises(UserError, match=said):
            embedded(patches / "test", name, "--crop_size", 16, "--resize", 16, "--workers", 0, "--dump_path",
                     tmp_path / f"out{factor:g}", "--page", "false", *words)  # fmt: skip


def test_any_folder(odd, tmp_path, capsys):
    folder = tmp_path / "out"
    assert embedded(odd, *SMALL, "--dump_path", folder) == 0
    out, err = capsys.readouterr()
    assert "19 of 20 images" in out
    assert "broken.png" in err
    assert "broken.png" in (folder / "unreadable.txt").read_text()
    table = pyarrow.parquet.read_table(folder / "features.parquet")
    assert table.column_names == ["path", "vector"]
    assert len(table) == len(np.load(folder / "features.npy")) == 19
    content = page_of(folder)
    assert set(table["path"].to_pylist()) == set(content["names"])
    assert any("\\xff" in name for name in content["names"])
    assert [one["name"] for one in content["colours"]] == ["cluster"]
    groups = [{content["names"][number] for number in row["images"]} for row in content["duplicates"]["rows"]]
    assert {"03.png", "<script>alert(1)<%script>'\"&.png", "a newline\nin it.png"} in groups
    assert any("04.png" in group and len(group) == 2 for group in groups)


BAD = {
    "a query that is not there": (
        ["--queries", "nowhere.png"],
        "--queries nowhere.png: there is no image of this name",
    ),
    "results among the images": (["--dump_path", "{train}/out"], "the results would lie among the images"),
    "a size that the network was not made for": (
        ["--arch", "mixer_s32_224", "--width", "1", "--stem", "imagenet"],
        "the network cannot compute images of 16 x 16 pixels",
    ),
    "an unknown projection": (["--projection", "som"], "--projection"),
    "no clusters": (["--clusters", "1"], "--clusters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, one, patches, capsys):
    words, said = BAD[case]
    words = [word.format(train=patches / "train") for word in words]
    with pytest.raises((UserError, SystemExit)) as error:
        embedded(patches / "train", *SMALL, *([] if "--dump_path" in words else ["--dump_path", one]), *words)
    assert said in f"{error.value} {capsys.readouterr().err}"


def test_too_few_images(patches, tmp_path):
    (tmp_path / "few").mkdir()
    for path in sorted((patches / "train" / "leaf").glob("*.png"))[:3]:
        shutil.copy(path, tmp_path / "few")
    with pytest.raises(UserError, match="a page needs 5 images, and there are 3: --page false"):
        embedded(tmp_path / "few", *SMALL, "--dump_path", tmp_path / "out")
    assert embedded(tmp_path / "few", *SMALL, "--dump_path", tmp_path / "out", "--page", "false") == 0
    for path in (tmp_path / "few").glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 3 images could be read"):
        embedded(tmp_path / "few", *SMALL, "--dump_path", tmp_path / "none", "--page", "false")


@pytest.mark.parametrize("projection", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_images_that_are_all_alike_have_a_page(projection, patches, tmp_path):
    (tmp_path / "same").mkdir()
    image = next((patches / "train" / "leaf").glob("*.png"))
    for number in range(7):
        shutil.copy(image, tmp_path / "same" / f"{number}.png")
    assert embedded(tmp_path / "same", *SMALL, "--projection", projection, "--dump_path", tmp_path / "out") == 0
    content = page_of(tmp_path / "out")
    assert len(content["clusters"]["rows"]) == 1
    assert [row["images"] for row in content["duplicates"]["rows"]] == [list(range(7))]


# ------------------------------------------------------------------ what is found


def test_nearest_is_what_all_pairs_say():
    features = np.random.default_rng(0).normal(size=(300, 6))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)[:, :12]
    similarity, numbers = nearest(torch.tensor(features), 12)
    assert np.array_equal(numbers.numpy(), order)
    assert np.allclose(similarity, np.take_along_axis(cosines, order, axis=1), atol=1e-6)
    assert nearest(torch.tensor(features[:3]), 12)[1].shape == (3, 2)


def test_near_duplicates_are_told_by_their_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, size=(12, 16, 16)).astype(np.uint8)
    pixels[3] = np.clip(pixels[1].astype(int) + rng.integers(-8, 9, size=(16, 16)), 0, 255)  # saved once more, say
    pixels[7] = pixels[1][:, ::-1]
    pixels[5], pixels[6], pixels[8] = 200, 201, 90  # without a pattern
    pixels[9] = pixels[2] // 2  # the same pattern, by far darker
    everyone = np.array([[other for other in range(12) if other != own] for own in range(12)])
    assert near_duplicates(everyone, pixels) == [[1, 3, 7], [5, 6]]
    assert near_duplicates(np.array([[0], [0]]), pixels[:2]) == []


def test_clusters_come_by_size_and_their_images_by_nearness():
    rng = np.random.default_rng(0)
    centres = np.eye(3)[[0] * 5 + [1] * 20 + [2] * 10]
    found = cluster(centres + 0.05 * rng.normal(size=centres.shape), 3, seed=0)
    assert [len(order) for order in found.order] == [20, 10, 5]
    assert [set(order.tolist()) for order in found.order] == [set(range(5, 25)), set(range(25, 35)), set(range(5))]
    assert (found.labels[5:25] == 0).all()
    assert len(cluster(np.ones((10, 3)), 4, seed=0).order) == 1  # a collapsed network


@pytest.mark.parametrize("name", ["vit_t", "vit_small_patch16_224", "vit_small_patch16_dinov3"])
def test_attention_is_that_of_the_network(name):
    torch.manual_seed(0)
    if name.endswith("dinov3"):  # turns positions inside its attention
        backbone = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
        assert attention_of_heads(backbone, torch.rand(2, 3, 64, 48)) is None
        return
    backbone = create_backbone(name).eval()
    images = torch.rand(2, 3, 64, 48)
    attention = backbone.blocks[-1].attn
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        backbone(images)
    found = attention_of_heads(backbone, images)
    assert found.shape == (2, attention.num_heads, 4, 3)
    assert torch.allclose(found.flatten(2), seen[0][:, :, 0, 1:], atol=1e-6)
    tokens = backbone.forward_features(images)[:, 1:]
    assert torch.allclose(last_map(backbone, images).flatten(2).transpose(1, 2), tokens, atol=1e-5)


MAPS = {  # of 224 pixels; None where there are no places, or none that can be told
    "mobilenetv3_small_050": (7, 7),
    "swin_tiny_patch4_window7_224": (7, 7),
    "pvt_v2_b0": (7, 7),
    "samvit_base_patch16_224": None,
    "efficientvit_m0": (4, 4),
    "mambaout_femto": (7, 7),
    "mixer_s32_224": None,
    "crossvit_tiny_240": None,
    "levit_128s": None,
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_of_other_networks(name):
    backbone = timm.create_model(name, num_classes=0).eval()
    size = 240 if name.endswith("240") else 224
    found = last_map(backbone, torch.rand(2, 3, size, size))
    if MAPS[name] is None:
        assert found is None or found.shape[1] == backbone.num_features
    else:
        assert found.shape == (2, backbone.num_features, *MAPS[name])
    assert attention_of_heads(backbone, torch.rand(2, 3, size, size)) is None


def test_the_map_of_our_networks():
    backbone = create_backbone("resnet18", width=0.125).eval()
    images = torch.rand(2, 3, 64, 64)
    found = last_map(backbone, images)
    assert torch.allclose(found.mean(dim=(2, 3)), backbone(images), atol=1e-5)
    assert attention_of_heads(backbone, images) is None


def test_colours_are_the_main_directions():
    torch.manual_seed(0)
    maps = torch.zeros(2, 5, 8, 8)
    maps[:, 2, :, :4] = 10  # by far the most: left and right
    maps += 0.01 * torch.rand(2, 5, 8, 8)
    red = as_colours(maps)[..., 0]
    assert red[:, :, :4].min() > 200
    assert red[:, :, 4:].max() < 50
    assert as_colours(torch.rand(1, 2, 4, 4)).shape == (1, 4, 4, 3)  # fewer channels than colours


# ------------------------------------------------------------------ in a browser


class Browser:
    """A headless Chromium, by its own protocol."""

    def __init__(self, folder: Path) -> None:
        from websockets.sync.client import connect

        port = free_port()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={port}",
                 f"--user-data-dir={folder}", "--window-size=1200,900", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen([CHROMIUM, *flags], stderr=subprocess.PIPE, text=True)
        self.calls = 0
        told = next(line for line in self.process.stderr if "DevTools listening on" in line).split()[-1]
        self.connection = connect(told, max_size=None)
        self.socket = self.connection.__enter__()
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    session: str | None = None

    def __call__(self, method: str, **parameters: object) -> dict:
        self.calls += 1
        content = {"id": self.calls, "method": method, "params": parameters}
        self.socket.send(json.dumps(content | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.calls:
                assert "error" not in answer, answer
                return answer["result"]

    def __getitem__(self, script: str) -> object:
        answer = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, page: Path) -> None:
        self("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + 60
        while not self["document.readyState === 'complete' && typeof atlas !== 'undefined' && atlas.complete"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def click(self, script: str) -> None:
        """A real click at the middle of an element."""
        self[f"({script}).scrollIntoView({{block: 'center'}})"]
        x, y, width, height = self.box(script)
        self.press(x + width / 2, y + height / 2)

    def box(self, script: str) -> list[float]:
        """Left, top, width and height of an element."""
        return self[f"(() => {{ const b = {script}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] }})()"]

    def press(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self) -> None:
        self.connection.__exit__(None, None, None)
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.slow
def test_a_click_shows_the_neighbours(odd, tmp_path):
    folder = tmp_path / "out"
    assert embedded(odd, *SMALL, "--dump_path", folder, "--queries", "05.png", "06.png") == 0
    content = page_of(folder)
    browser = Browser(tmp_path / "browser")
    try:
        browser.open(folder / "index.html")
        assert browser["document.title"] == content["title"]
        assert browser["document.querySelectorAll('#clusters .row').length"] == 3
        assert browser["document.querySelectorAll('#queries .row').length"] == 2
        assert browser["document.querySelectorAll('#inside img')[0].naturalWidth"] > 100
        assert browser["document.getElementById('panel').hidden"] is True
        # names are words, whatever is in them
        assert browser["document.querySelectorAll('script').length"] == 2
        number = content["names"].index("05.png")
        browser.click("document.querySelector('#queries button')")
        shown = "[...document.querySelectorAll('#chosen button')].map((one) => Number(one.dataset.number))"
        assert browser[shown] == [number, *(other for other, _ in content["neighbours"][number])]
        assert "05.png" in browser["document.getElementById('chosen').textContent"]
        # a click on a neighbour goes on from there
        second = content["neighbours"][number][1][0]
        browser.click("document.querySelectorAll('#chosen button')[2]")
        assert browser[shown] == [second, *(other for other, _ in content["neighbours"][second])]
        assert browser["location.hash"] == f"#{second}"
        # on the map, at the place of the image that was chosen first
        x, y = browser[f"place({number})"]
        browser["window.scrollTo(0, 0)"]
        left, top, width, height = browser.box("canvas")
        browser.press(left + x * width / 1100, top + y * height / 733)
        assert browser[shown][0] == number
        browser.click("document.getElementById('close')")
        assert browser["document.getElementById('panel').hidden"] is True
        # nothing comes from elsewhere
        fetched = browser["performance.getEntriesByType('resource').map((one) => one.name.slice(0, 5))"]
        assert set(fetched) <= {"data:"}
    finally:
        browser.close()
