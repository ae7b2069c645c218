"""Backbones written for others are read by others, and by us, with the same values."""

import base64
import http.server
import json
import re
import threading

import export
import hubconf
from src.checkpoints.weights import write_weights
from src.errors import UserError
from src.exporting import onnx_file
from src.exporting.agreement import require_agreement
from src.models.backbones import create_backbone
from src.models.pretrained import BackboneSpec, load_backbone, random_backbone
from tests.checkpoints.test_layouts import MOCO_HEAD, prefixed, weights
from tests.helpers import free_port, on_ranks, run
from tests.scripts.test_main_swav import command

import huggingface_hub
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision

ONE = torch.ones(1)
LAYOUTS = {
    "SwAV": lambda state: prefixed({**state, "prototypes.weight": ONE, "projection_head.0.bias": ONE},
                                   "module."),
    "MoCo-v2": lambda state: {"state_dict": {**prefixed({**state, **MOCO_HEAD}, "module.encoder_q."),
                                             "module.queue": ONE}},
    "TWIST": lambda state: {"model": {**prefixed(state, "backbone."), "projection_heads.norm.running_var": ONE},
                            "backbone": state, "epoch": 3},
    "INTL": lambda state: {"state_dict": {**prefixed(state, "module.backbone."),
                                          "module.projection.0.weight": ONE}, "epoch": 3},
    "W2SSL": lambda state: {"state_dict": prefixed({**state, "fc_crop.0.weight": ONE}, "module.base_encoder.")},
    "torchvision": lambda state: {**state, "fc.weight": ONE, "fc.bias": ONE},
}  # fmt: skip


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_keeps_every_value(layout, ending, tmp_path):
    state = weights()
    torch.save(LAYOUTS[layout](state), tmp_path / "in.pth")
    assert export.main([str(tmp_path / "in.pth"), str(tmp_path / f"out.{ending}")]) == 0
    read = safetensors.torch.load_file if ending == "safetensors" else torch.load
    written = read(tmp_path / f"out.{ending}")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    if ending == "pth":
        again = load_backbone(tmp_path / "out.pth").backbone.state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_torchvision_and_timm_read_what_is_written(tmp_path):
    backbone = create_backbone("resnet50").eval()
    torch.save(backbone.state_dict(), tmp_path / "in.pth")
    export.main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    state = torch.load(tmp_path / "out.pth")
    x = torch.randn(2, 3, 64, 64)
    for model in (torchvision.models.resnet50(), timm.create_model("resnet50")):
        result = model.load_state_dict(state, strict=False)
        assert set(result.missing_keys) == {"fc.weight", "fc.bias"}
        assert result.unexpected_keys == []
        model.fc = torch.nn.Identity()
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), backbone(x), rtol=1e-4, atol=1e-5)


def test_transformers_keep_timms_names(tmp_path):
    vit = create_backbone("vit_tiny_patch16_224")
    torch.save({"model": prefixed(vit.state_dict(), "backbone."), "x": 1}, tmp_path / "in.pth")
    export.main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--arch", "vit_tiny_patch16_224"])
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "out.safetensors"))


def test_our_checkpoints_are_exported_and_loaded_by_the_hub(patches, tmp_path):
    assert run(*command(patches, tmp_path, "--epochs", 1, "--batch_size", 16, "--workers", 0)).returncode == 0
    path = str(tmp_path / "checkpoint.pth.tar")
    result = run("export.py", path, tmp_path / "out.pth")
    assert result.returncode == 0, result.stderr
    assert "wrote 120 entries" in result.stdout
    root = str(export.__file__).rsplit("/", 1)[0]
    backbone = torch.hub.load(root, "checkpoint", path, source="local")
    assert all(torch.equal(t, torch.load(tmp_path / "out.pth")[n]) for n, t in backbone.state_dict().items())


def test_the_hub_fills_torchvisions_resnet_and_the_wide_ones(tmp_path, monkeypatch):
    """The files are there already, in the published layout; tests/models/test_zoo.py downloads some."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for file, arch in (
        ("swav_800ep_pretrain", "resnet50"),
        ("swav_RN50w2_400ep_pretrain", "resnet50w2"),
        ("swav_RN50w4_400ep_pretrain", "resnet50"),
    ):
        content = LAYOUTS["SwAV"](create_backbone(arch).state_dict())
        torch.save(content, tmp_path / "checkpoints" / f"{file}.pth.tar")
    model = hubconf.resnet50()
    assert model.fc.out_features == 1000
    assert torch.equal(model.conv1.weight, content["module.conv1.weight"]) is False  # another file
    assert hubconf.resnet50w2().feature_width == 4096
    assert hubconf.resnet50(pretrained=False).fc.out_features == 1000
    with pytest.raises(hubconf.UserError, match="is a resnet50w4"):
        hubconf.resnet50w4()  # the file is another network


# ------------------------------------------------------------------ ONNX, in processes of their own: torch's exporter
# starts threads that a later fork would miss


@pytest.mark.parametrize(
    "shape",
    [
        {"arch": "resnet18", "width": 0.125, "stem": "small"},
        pytest.param({"arch": "resnet50", "width": 0.125}, marks=pytest.mark.slow),
        {"arch": "vit_t"},
        pytest.param({"arch": "mobilenetv3_small_050", "channels": 1}, marks=pytest.mark.slow),
    ],
    ids=lambda shape: shape["arch"],
)
def test_onnx_computes_the_same_for_any_batch(shape, tmp_path):
    backbone = random_backbone(BackboneSpec(**shape), 3)
    told = {**shape, "mean": [0.1] * shape.get("channels", 3), "std": [0.2] * shape.get("channels", 3)}
    write_weights(tmp_path / "in.safetensors", backbone.state_dict(), {**told, "eval_size": 48, "eval_resize": 64})
    done = run("export.py", tmp_path / "in.safetensors", tmp_path / "out.onnx")
    assert done.returncode == 0, done.stderr
    assert "which onnxruntime computes alike" in done.stdout
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", options)
    about = session.get_modelmeta().custom_metadata_map
    assert about["mean"] == " ".join(["0.1"] * shape.get("channels", 3))
    assert about["eval_size"] == "48"
    sides = [(48, 48)] if shape["arch"] == "vit_t" else [(48, 48), (80, 64)]
    for count in (1, 5):
        for height, width in sides:
            images = torch.randn(count, shape.get("channels", 3), height, width)
            with torch.no_grad():
                expected = backbone(images)
            found = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def what_is_said_of_another_function(path):
    backbone = random_backbone(BackboneSpec("resnet18", 0.125, "small"), 3)
    runner = onnx_file._runner
    onnx_file._runner = lambda content: lambda images: runner(content)(images) * 1.001
    try:
        onnx_file.write_onnx(path, backbone, {}, 32, 3)
    except UserError as error:
        return str(error)


def test_onnx_that_computes_something_else_is_not_written(tmp_path):
    said = on_ranks(1, what_is_said_of_another_function, tmp_path / "out.onnx")
    assert said == ["onnxruntime gives other features: they differ by 0.001 of the largest one"]
    assert not (tmp_path / "out.onnx").exists()


# ------------------------------------------------------------------ folders for timm and the Hub


@pytest.mark.parametrize(
    ("shape", "size"),
    [({"arch": "resnet18"}, 64), ({"arch": "vit_t"}, 96), ({"arch": "vit_t"}, 224), ({"arch": "efficientb0"}, 64),
     ({"arch": "vit_tiny_patch16_224", "channels": 4}, 64)],
    ids=str,
)  # fmt: skip
def test_timm_loads_a_folder(shape, size, tmp_path):
    backbone = random_backbone(BackboneSpec(**shape), 3)
    channels = shape.get("channels", 3)
    told = {"method": "twist", **shape, "mean": [0.1] * channels, "std": [0.2] * channels}
    write_weights(tmp_path / "in.pth", backbone.state_dict(), told)
    assert export.main([str(tmp_path / "in.pth"), f"{tmp_path}/out/", "--size", str(size)]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        expected = backbone(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (channels, size, size)
    assert tuple(data["mean"]) == (0.1,) * channels
    # and so do we, by name
    again = load_backbone(f"timm:local-dir:{tmp_path / 'out'}")
    assert again.settings["eval_size"] == size


def test_what_timm_does_not_have_is_refused(tmp_path):
    write_weights(
        tmp_path / "in.pth",
        random_backbone(BackboneSpec("resnet18", 0.125, "small"), 3).state_dict(),
        {"arch": "resnet18", "width": 0.125, "stem": "small"},
    )
    with pytest.raises(UserError, match=r"timm has no resnet18w0\.125 with --stem small: write a file instead"):
        export.main([str(tmp_path / "in.pth"), f"{tmp_path}/out/"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [96, 256])
def test_a_transformer_of_windows_at_another_size(size, tmp_path):
    backbone = random_backbone(BackboneSpec("swin_tiny_patch4_window7_224"), 3)
    write_weights(tmp_path / "in.pth", backbone.state_dict(), {"arch": "swin_tiny_patch4_window7_224"})
    assert export.main([str(tmp_path / "in.pth"), f"{tmp_path}/out/", "--size", str(size)]) == 0


@pytest.mark.parametrize("name", ["mixer_s32_224", "cait_xxs24_224", "beit_base_patch16_224"])
def test_a_network_of_one_size_is_refused_at_another(name, tmp_path):
    write_weights(tmp_path / "in.pth", create_backbone(name).state_dict(), {"arch": name})
    for out in ("out/", "out.onnx"):
        with pytest.raises(UserError, match="the network cannot compute images of 96 x 96 pixels"):
            export.main([str(tmp_path / "in.pth"), f"{tmp_path}/{out}", "--size", "96"])
        assert not (tmp_path / out).exists()


def test_what_is_no_number_does_not_agree():
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="another gives other features"):
            require_agreement(
                torch.nn.Flatten(), lambda images, value=value: images.flatten(1) * value, [(2, 3, 4, 4)], "another"
            )
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(9.0, float("inf")))
    with pytest.raises(UserError, match="the network gives features that are not finite"):
        require_agreement(broken, broken, [(2, 3, 4, 4)], "another")


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "mobilenetv3_small_050", "regnetx_002"])
def test_networks_of_timm_are_read_again(name, tmp_path):
    """Some have layers behind the pooling whose names look like a classifier's."""
    state = random_backbone(BackboneSpec(name), 3).state_dict()
    write_weights(tmp_path / "in.safetensors", state, {"arch": name})
    again = load_backbone(tmp_path / "in.safetensors").backbone.state_dict()
    assert all(torch.equal(again[entry], tensor) for entry, tensor in state.items())
    torch.save(timm.create_model(name).state_dict(), tmp_path / "theirs.pth")  # with a classifier
    load_backbone(tmp_path / "theirs.pth", BackboneSpec(name))


class FakeHub(http.server.ThreadingHTTPServer):
    """As much of the Hugging Face Hub as an upload meets."""

    def __init__(self) -> None:
        self.made, self.files, self.tokens = {}, {}, set()
        super().__init__(("127.0.0.1", 0), _Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_):
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content, code=200):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self._body()
        if "forbidden" in self.path:
            return self._answer({"error": "there is no such model"}, 404)
        return self._answer({"id": "user/model", "sha": "0" * 40, "siblings": []})

    def do_PUT(self):
        self.server.files[self.path.removeprefix("/store/")] = self._body()
        self._answer({})

    def do_POST(self):
        body = self._body()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.made[f"{asked.get('organization') or 'user'}/{asked['name']}"] = asked
            if asked["name"] == "forbidden":
                return self._answer({"error": "You are not allowed to"}, 403)
            return self._answer({"url": f"{self.server.address}/user/{asked['name']}"})
        if self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                      "shouldIgnore": False} for one in asked]  # fmt: skip
            return self._answer({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/store/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.files.pop(value["oid"])
            return self._answer(
                {
                    "commitUrl": f"{self.server.address}/user/model/commit/{0:040}",
                    "commitOid": "0" * 40,
                    "success": True,
                }
            )
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        return self._answer({"error": f"what is {self.path}?"}, 404)


@pytest.fixture
def hub(monkeypatch):
    made = FakeHub()
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield made
    made.shutdown()
    made.server_close()


def test_a_pushed_model_arrives_whole(hub, patches, tmp_path, capsys):
    words = ["main_swav.py", "--data_path", patches / "train", "--arch", "resnet18", "--dump_path", tmp_path / "run",
             "--size_crops", 32, "--nmb_crops", 2, "--min_scale_crops", 0.3, "--max_scale_crops", 1, "--epochs", 1,
             "--batch_size", 16, "--nmb_prototypes", 10, "--knn_freq", 1, "--knn_k", 5, "--workers", 0,
             "--device", "cpu"]  # fmt: skip
    assert run(*words).returncode == 0
    checkpoint = tmp_path / "run" / "checkpoint.pth.tar"
    evaluated = run("eval_knn.py", "--data_path", patches, "--pretrained", checkpoint, "--dump_path",
                    tmp_path / "run" / "knn", "--k", 5, "--workers", 0, "--device", "cpu")  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.txt").write_text("not to be seen")
    pushed = ["--push", "user/model", "--private", "--license", "cc-by-4.0"]
    assert export.main([str(checkpoint), f"{tmp_path}/out", *pushed]) == 0
    assert "pushed to" in capsys.readouterr().out
    asked = hub.made["user/model"]  # which releases of huggingface-hub say in two ways
    assert asked.get("private") is True or asked.get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    for name, content in hub.files.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    card = huggingface_hub.ModelCard(hub.files["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "timm")
    knn = json.loads((tmp_path / "run" / "knn" / "knn.json").read_text())["knn"]["5"]["top1"]
    assert round(knn, 2) in [one.metric_value for one in card.data.eval_results]
    for part in ("Images: 96, of `patches`", "method: swav", "`nmb_prototypes 10`", "cc-by-4.0",
                 'timm.create_model("hf-hub:user/model"'):  # fmt: skip
        assert part in card.text
    assert str(tmp_path) not in card.content  # of the machine nothing is told


BAD = {
    "another ending": (["out.txt"], "expected a name that ends in .pth, .pt, .safetensors, .onnx, or a folder"),
    "no name of a model": (["out", "--push", "model"], "--push model: expected USER/NAME"),
    "what the hub refuses": (
        ["out", "--push", "user/forbidden"],
        "out is written, and cannot be pushed to user/forbidden",
    ),
    "a folder that holds a model": (["full"], "exists already: choose another name, or say --overwrite"),
    "a file to push": (["out.onnx", "--push", "user/model"], "--push uploads a folder, and out.onnx is to be a file"),
    "a name that is a path": (["out", "--push", "../.."], "--push ../..: expected USER/NAME"),
    "a file that is not there": (["out.pth"], "missing.pth does not exist"),
    "another network": (["out.pth", "--arch", "resnet50"], "is --arch right"),
    "another entry": (["out.pth", "--key", "ema"], "no entry"),
    "published, as a folder": (["out/", "--layout", "published"], "--layout published is a PyTorch file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, hub, tmp_path, monkeypatch):
    words, said = BAD[case]
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "in.pth", random_backbone(BackboneSpec("resnet18"), 3).state_dict(), {"arch": "resnet18"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape(said)):
        export.main(["missing.pth" if "not there" in case else "in.pth", *words])
    assert (tmp_path / "full" / "config.json").read_text() == "{}"


def test_a_hub_that_cannot_be_reached(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    write_weights(tmp_path / "in.pth", random_backbone(BackboneSpec("resnet18"), 3).state_dict(), {"arch": "resnet18"})
    with pytest.raises(UserError, match="is written, and cannot be pushed to user/model"):
        export.main([str(tmp_path / "in.pth"), str(tmp_path / "out"), "--push", "user/model"])
    assert (tmp_path / "out" / "model.safetensors").exists()
