"""What is published of a study: enough to write its page again, and nothing of one that cannot be."""

import shutil
import tarfile
from unittest import mock

from benchmarks import publish_study
from src.errors import UserError
from tests.study.tiny import studied

import pytest


def test_what_is_published_is_enough_to_write_the_page_again(one, patches, tmp_path):
    publish_study.publish(one, tmp_path / "published")
    assert {path.name for path in (tmp_path / "published").iterdir()} == {*publish_study.PAGE, publish_study.RUNS}
    with tarfile.open(tmp_path / "published" / publish_study.RUNS) as archive:
        archive.extractall(tmp_path / "again" / "one", filter="data")
    content = b"".join(path.read_bytes() for path in (tmp_path / "again").rglob("*.json*"))
    assert str(one).encode() not in content
    words = ["--methods", "swav", "moco", "--seeds", 3]
    assert studied(patches, tmp_path / "again" / "one", *words, trains=None) == 0  # nothing is trained
    text = (tmp_path / "again" / "one" / "study.md").read_text()
    assert text.replace(str(tmp_path / "again" / "one"), str(one)) == (one / "study.md").read_text()
    publish_study.pack(tmp_path / "again" / "one", tmp_path / "runs.tar.xz")
    assert (tmp_path / "runs.tar.xz").read_bytes() == (tmp_path / "published" / publish_study.RUNS).read_bytes()


NOT_TO_PUBLISH = {
    "another folder": (lambda folder: (folder / "study.png").unlink(), "not the folder of a study that has ended"),
    "runs under way": (
        lambda folder: (folder / "study.md").write_text("So far 3 of 9 runs are over."),
        "has not ended",
    ),
    "no labels": (
        lambda folder: (folder / "study.json").write_text('{"differences": {}}'),
        "a study without labels has",
    ),
    "two seeds": (
        lambda folder: (folder / "study.json").write_text((folder / "study.json").read_text().replace('"low"', '"no"')),
        "moco has too few runs beside those of random weights: at least 3 seeds",
    ),
    "other methods": (lambda folder: None, "README.md shows all methods, and the study has no deepcluster-v2"),
    "no place for its table": (lambda folder: None, "study mine: stands 0 times on the page"),
    "too few checkpoints": (
        lambda folder: None,
        "cifar10: too few runs, or too few checkpoints with an accuracy, to tell anything of RankMe",
    ),
}


@pytest.mark.parametrize("case", NOT_TO_PUBLISH)
def test_what_cannot_be_published_changes_nothing(case, one, tmp_path):
    shutil.copytree(one, tmp_path / "one")
    spoil, said = NOT_TO_PUBLISH[case]
    spoil(tmp_path / "one")
    names = {"other methods": "photographs", "no place for its table": "mine"}
    with mock.patch.object(publish_study, "publish", None), pytest.raises(UserError, match=said):
        publish_study.main([str(tmp_path / "one"), names.get(case, "cifar10")])
