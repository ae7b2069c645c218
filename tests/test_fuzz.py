"""Whatever a user types and whatever a disk holds: a right answer or one line, and never a traceback.

The budget is fixed, and so are the examples, so that a failure can be repeated.
"""

import io
import json
import os
import shutil
import tarfile

import compare
import eval_cluster
import eval_knn
import eval_linear
import eval_semisup
import export
import main_cwrgp
import main_dino
import main_disco
import main_intl
import main_swav
import main_twist
import main_w2ssl
from scripts import make_lmdb
from src.checkpoints.store import read_run
from src.cli.parser import given_in
from src.data.folder import FolderImages
from src.data.lmdb_file import LMDBImages
from src.data.loading import ViewDataset
from src.data.sampling import Position
from src.data.shards import ShardImages
from src.data.views import CentreView
from src.engine.monitor import read_log
from src.errors import UserError
from src.settings import Leaf, leaves
from tests.scripts.test_right_numbers import save_run

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytestmark = pytest.mark.slow

SCRIPTS = (
    *(main_swav, main_twist, main_intl, main_cwrgp, main_disco, main_w2ssl, main_dino),
    *(eval_knn, eval_linear, eval_semisup, eval_cluster, export, compare),
)


def budget(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def is_one_line(error: UserError, about: str = "") -> None:
    assert len(str(error).splitlines()) == 1, error
    assert about in str(error)


# ------------------------------------------------------------------------------------------------ the command line

NUMBERS = st.one_of(
    st.integers(-3, 40).map(str),
    st.floats(allow_nan=True, allow_infinity=True, width=32).map(str),
    st.sampled_from(["0", "-1", "1e10", "1e400", "nan", "inf", "0x10", "1_000", "٣", "", "-", "--", "1.5", "1,5"]),
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["true", "False", "0", "folder", "cifar10", "auto", "none", "/x", "-e", "=", "$x"]),
)


def values(leaf: Leaf):
    if leaf.about.switch:
        return st.just([])
    one = st.sampled_from(leaf.about.choices) if leaf.about.choices else NUMBERS
    one = st.one_of(one, WORDS) if leaf.item_type in (str, bool) else one
    return st.lists(st.one_of(one, WORDS), min_size=0, max_size=3)


@pytest.mark.parametrize("module", SCRIPTS, ids=lambda module: module.__name__)
def test_any_command_line_is_understood_or_refused_in_one_line(module, capsys):
    flags = [(flag, leaf) for leaf in leaves(module.SCRIPT.settings) for flag in leaf.flags]
    ended: list = []

    @budget(200)
    @given(st.data())
    def check(data):
        words = ["--data_path", "/x"] if data.draw(st.booleans()) else []
        for flag, leaf in data.draw(st.lists(st.sampled_from(flags), max_size=6)):
            words += [flag, *data.draw(values(leaf))]
        words += data.draw(st.lists(WORDS, max_size=2))
        try:
            module.SCRIPT.parse(words)
        except UserError as error:
            is_one_line(error)
        except SystemExit as stop:  # --help
            ended.append(stop.code)

    check()
    capsys.readouterr()
    assert not any(ended)


# ------------------------------------------------------------------------------------------------ bytes


def damaged(content: bytes, data) -> bytes:
    """The same with some bytes changed, and perhaps cut off or lengthened."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.one_of(st.integers(0, min(200, len(found) - 1)), st.integers(0, len(found) - 1)))
        found[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        found = found[: data.draw(st.integers(0, len(found)))]
    return bytes(found) + data.draw(st.binary(max_size=4))


def encoded(kind):
    array = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, array)
    else:
        Image.fromarray(array).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "bmp", "ppm", "webp", "npy"])
def test_any_image_file_is_read_or_left_out(tmp_path, kind):
    content = encoded(kind)
    (tmp_path / f"x.{kind}").write_bytes(content)
    dataset = ViewDataset(FolderImages(tmp_path, [".npy"]), [CentreView(8, 8)], replace=False)

    @budget(250)
    @given(st.data())
    def check(data):
        (tmp_path / f"x.{kind}").write_bytes(damaged(content, data))
        try:
            sample = dataset[Position(0, 0)]
        except UserError as error:  # values or channels without a meaning
            is_one_line(error, "x.")
            return
        assert len(sample.views) + len(sample.unreadable) == 1
        assert not sample.views or sample.views[0].shape == (3, 8, 8)

    check()


def test_any_shard_is_read_or_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for index, (ending, blob) in enumerate([("png", encoded("png")), ("cls", b"1"), ("jpg", encoded("jpg"))]):
            member = tarfile.TarInfo(f"{index // 2:03d}.{ending}")
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    ShardImages(path)
    listing = path.with_name("x.tar.index.npz")
    content, listed = path.read_bytes(), listing.read_bytes()

    @budget(250)
    @given(st.data())
    def check(data):
        listing.unlink(missing_ok=True)
        path.write_bytes(damaged(content, data))
        if data.draw(st.booleans()):  # the list beside it, which is newer: of the whole shard, and damaged
            listing.write_bytes(damaged(listed, data))
        try:
            source = ShardImages(path)
        except UserError:
            return
        for index in range(len(source)):
            ViewDataset(source, [CentreView(8, 8)], replace=False)[Position(0, index)]

    check()


def _judge_lmdb(path) -> None:
    try:
        source = LMDBImages(path)
        for index in range(len(source)):
            source.name(index)
            ViewDataset(source, [CentreView(8, 8)], replace=False)[Position(0, index)]
    except UserError:
        pass


def test_any_lmdb_file_is_read_or_refused_and_never_kills(tmp_path):
    """In a fork, as a memory map that is wrong would end the process itself."""
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "x.png").write_bytes(encoded("png"))
    make_lmdb.main(["--data_path", str(tmp_path / "images"), "--out", str(tmp_path / "x.lmdb")])
    content = (tmp_path / "x.lmdb").read_bytes()

    @budget(120)
    @given(st.integers(0, 10**9), st.integers(0, len(content)), st.booleans())
    def check(seed, length, cut):
        generator = np.random.default_rng(seed)
        found = bytearray(content[:length] if cut else content)
        if not cut:  # images and names, past the pages of the tree's description
            for place in generator.integers(2 * 4096, len(found), 6):
                found[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "y.lmdb").write_bytes(found)
        child = os.fork()
        if child == 0:
            try:
                _judge_lmdb(tmp_path / "y.lmdb")
                os._exit(0)
            except BaseException:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if cut:
            assert status == 0
        else:
            assert status in (0, -6, -11), status  # liblmdb trusts the links between its own pages

    check()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_run(
        tmp_path_factory.mktemp("run"), {"method": "swav", "arch": "resnet18", "width": 0.0625, "stem": "small"}
    )


def test_any_checkpoint_is_the_same_or_refused(checkpoint, tmp_path):
    content, whole = checkpoint.read_bytes(), read_run(checkpoint)

    @budget(300)
    @given(st.data())
    def check(data):
        (tmp_path / "x.pth").write_bytes(damaged(content, data))
        try:
            found = read_run(tmp_path / "x.pth")
        except UserError:
            return
        assert all(torch.equal(found["state_dict"][name], t) for name, t in whole["state_dict"].items())
        assert found["settings"] == whole["settings"]

    check()


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def test_any_doctored_checkpoint_is_one_line(checkpoint, tmp_path, patches):
    """Entries of other types and huge numbers, under a check sum that was taken away: resume, evaluate, export."""
    whole = read_run(checkpoint)
    names = [name for name in whole if name != "checksum"]
    small = ["--dump_path", tmp_path, "--k", 3, "--workers", 0, "--device", "cpu", "--crop_size", 32]
    shutil.copy(checkpoint, tmp_path / "x.pth")

    @budget(120)
    @given(st.sampled_from(names), JUNK, st.booleans())
    def check(name, junk, remove):
        content = {key: value for key, value in whole.items() if key != "checksum"}
        content[name] = junk
        if remove:
            del content[name]
        torch.save(content, tmp_path / "x.pth")
        out = tmp_path / "out.pth"
        for main, words in (
            (export.main, [tmp_path / "x.pth", out, "--overwrite"]),
            (eval_knn.main, ["--data_path", patches, "--pretrained", tmp_path / "x.pth", *small]),
        ):
            try:
                assert main([str(word) for word in words]) == 0
            except UserError as error:
                is_one_line(error)

    check()


# ------------------------------------------------------------------------------------------------ text files


def test_any_log_and_any_result_is_compared_or_refused(tmp_path, capsys):
    record = {"kind": "train", "epoch": 0, "step": 3, "loss": 1.5, "images_per_second": 10.0}

    @budget(250)
    @given(st.data())
    def check(data):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        changed = {**record, data.draw(st.sampled_from(list(record))): data.draw(JUNK)}
        lines = [json.dumps(one) for one in (record, changed, data.draw(JUNK))]
        (run / "log.jsonl").write_bytes(damaged("\n".join(lines).encode(), data))
        (run / "settings.json").write_text(json.dumps({"arguments": data.draw(JUNK), "given": data.draw(JUNK)}))
        if data.draw(st.booleans()):
            (run / "knn.json").write_text(json.dumps({"knn": data.draw(JUNK)}))
        read_log(run / "log.jsonl", "train")
        for attempt in (
            lambda: compare.main([str(run), "--json", str(tmp_path / "x.json")]),
            lambda: given_in(str(run / "settings.json")),
        ):
            try:
                attempt()
            except UserError as error:
                is_one_line(error)

    check()
    capsys.readouterr()
