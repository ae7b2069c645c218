"""Every recipe of a study is understood by its script, and follows the rules."""

import importlib

from src.cli import Call
from src.study.recipes import RECIPES, Scale, words_of

import pytest


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize(
    "scale",
    [
        Scale(4261, 128, 12, 128, 32, (0.15, 0.6), 0.5, 0.0),
        Scale(1_281_167, 2048, 100, 256, 224, blur=0.5, teacher="/t"),
        Scale(60, 512, 1, 20, 96),
    ],
    ids=["patches", "imagenet", "few"],
)
def test_every_recipe_is_understood_and_gives_the_same_views(method, scale):
    script, *words = words_of(method, scale)
    call: Call = importlib.import_module(script.removesuffix(".py")).SCRIPT.parse(
        [*words, "--data_path", "/d", "--dump_path", "/r", "--epochs", str(scale.epochs)]
    )
    views = call.settings.views
    drawn = views.views(small=False) if script == "main_cwrgp.py" else views.views()
    assert len(drawn) >= 2
    for view in drawn:
        if method != "w2ssl":
            assert (view.size, view.scale) == (scale.size, scale.area)
        assert view.jitter[0] == pytest.approx(0.4 * scale.jitter)
        assert view.jitter[3] == pytest.approx(0.1 * scale.jitter)
        assert (view.grayscale, view.blur, view.solarize, view.flip) == (scale.grayscale, scale.blur, 0, 0.5)
        assert not getattr(view, "colours_first", False)


def test_rules():
    scale = Scale(4261, 128, 12, 128, 32)
    assert (scale.num_clusters, scale.queue, scale.warmup) == (101, 33 * 128, 1)
    assert scale.momentum(0.999) == pytest.approx(1 - 5 / (33 * 12), abs=1e-4)
    assert Scale(10**6, 128, 100, 128, 32).momentum(0.999) == 0.999
    assert Scale(4261, 128, 12, 256, 32).lr(0.06) == 0.12
    assert Scale(4261, 128, 12, 512, 32, rate=3).lr(0.002, 0.5) == pytest.approx(0.012)


def test_prototypes_are_no_more_than_the_images_that_are_shared_among_them():
    def given(method, flag, **more):
        words = words_of(method, Scale(10_000, 64, 3, 128, 24, **more))
        return words[words.index(flag) + 1]

    for method, flag in (("swav", "--nmb_prototypes"), ("sela-v2", "--nmb_prototypes"), ("twist", "--dim")):
        assert given(method, flag) == "128"
        assert given(method, flag, clusters=300) == "300"
    assert given("deepcluster-v2", "--nmb_prototypes") == "238"  # whose clusters are those of all images
    assert given("dino", "--out_dim") == "2380"
