"""compare.py on folders as trainings and evaluations leave them."""

import json

import compare
from tests.helpers import run
from tests.scripts.test_bad_input import fails
from tests.test_plots import colours

import pytest


def make_run(folder, losses, **flags):
    folder.mkdir()
    arguments = {
        "method": "swav",
        "arch": "resnet18",
        "width": 0.25,
        "epochs": 4,
        "epsilon": 0.05,
        "workers": 1,
        **flags,
    }
    (folder / "settings.json").write_text(json.dumps({"arguments": arguments}))
    records = [
        {"kind": "train", "epoch": i // 2, "step": i, "loss": loss, "images_per_second": 100.0 + i}
        for i, loss in enumerate(losses)
    ]
    records += [{"kind": "evaluation", "epoch": i, "step": 2 * i, "knn_top1": top1} for i, top1 in ((1, 41.5), (2, 40))]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "tr')
    return folder


@pytest.fixture
def folders(tmp_path):
    a = make_run(tmp_path / "a", [4.0, 3.0, 2.5, 2.0])
    b = make_run(tmp_path / "b", [4.0, None], epsilon=0.03, workers=7, nmb_crops=[2, 6])
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "knn.json").write_text(json.dumps({"knn": {"5": {"top1": 50.0}, "20": {"top1": 51.25}}}))
    results = {"0.1": {"top1": 30.0}, "1": {"top1": 60.0}}
    (tmp_path / "judged" / "linear.json").write_text(json.dumps({"lr": results}))
    (tmp_path / "judged" / "semisup.json").write_text(json.dumps({"lr": results, "labels_percent": 1}))
    return a, b, tmp_path / "judged"


def test_one_row_for_each_run(folders):
    header, *rows = compare.table([compare.read(folder) for folder in folders])
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert cells["a"]["epochs"] == "2/4"
    assert cells["a"]["loss"] == "2"
    assert cells["b"]["loss"] == "not finite"
    assert cells["a"]["online knn top1"] == "40.00 (best 41.50)"
    assert cells["judged"]["20-NN"] == "51.25"
    assert cells["judged"]["linear"] == "60.00 (lr 1)"
    assert cells["judged"]["semisup 1 %"] == "60.00 (lr 1)"
    assert cells["judged"]["loss"] == "-"
    # flags that tell runs apart; not those that change nothing, nor those that only newer runs have
    assert [name for name in header if name.startswith("--")] == ["--epsilon"]
    assert (cells["a"]["--epsilon"], cells["b"]["--epsilon"], cells["judged"]["--epsilon"]) == ("0.05", "0.03", "-")


def test_from_the_shell(folders, tmp_path):
    result = run("compare.py", *folders, "--plot", tmp_path / "out.png", "--json", tmp_path / "out.json",
                 "--reference", "published=75.3")  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert colours(tmp_path / "out.png") > 50
    assert [row["run"] for row in json.loads((tmp_path / "out.json").read_text())] == ["a", "b", "judged"]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "Give at least one folder"),
    (["{tmp}/nowhere"], "is not a folder"),
    (["{tmp}"], "is no run"),
    (["{tmp}/broken"], "cannot read"),
    (["{tmp}/a", "--plto", "x.png"], "unknown argument --plto"),
    (["{tmp}/judged", "--plot", "{tmp}/x.png"], "none of the folders has a log"),
    (["{tmp}/a", "{tmp}/a", "--plot", "{tmp}/x.png"], "have the same name"),
    (["{tmp}/a", "--plot", "{tmp}/x.xyz"], "a picture cannot be .xyz"),
    (["{tmp}/a", "--reference", "published"], "expected NAME=ACCURACY"),
    (["{tmp}/a", "--reference", "published=high"], "expected NAME=ACCURACY"),
])  # fmt: skip
def test_bad_input(folders, tmp_path, capsys, arguments, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "settings.json").write_text("{")
    fails(compare.main, [argument.format(tmp=tmp_path) for argument in arguments], capsys, message)


def test_scores_without_labels_have_columns(tmp_path):
    a = make_run(tmp_path / "a", [4.0])
    with open(a / "log.jsonl", "a") as file:
        file.write("\n" + json.dumps({"kind": "evaluation", "epoch": 2, "step": 4, "rankme": 20.123, "lidar": None}))
    (a / "scores.json").write_text(json.dumps({"scores": {"alignment": 0.5, "alpha_req": None}}))
    values = compare.read(a).values
    assert values["online RankMe"] == "20.12"
    assert values["alignment"] == "0.5"
    assert not {"online LiDAR", "alpha-ReQ"} & set(values)
