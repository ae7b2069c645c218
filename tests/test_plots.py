from src.plots import crops_mosaic, embedding_map, training_curves

import numpy as np
import torch
from PIL import Image


def colours(path):
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def test_pictures_are_drawn(tmp_path):
    crops = [torch.randint(0, 256, (3, 3, s, s), dtype=torch.uint8) for s in (32, 32, 16)]
    crops_mosaic(crops, tmp_path / "crops.png")
    assert colours(tmp_path / "crops.png") > 1000  # the pixels themselves

    train = [{"step": s, "loss": 5 - s / 10} for s in range(10)]
    evaluations = [{"step": 5, "knn_top1": 40.0}, {"step": 9, "knn_top1": 50.0}]
    training_curves(train, evaluations, tmp_path / "deep" / "curves.png", reference_loss=4.6, reference_value=30.0)
    assert colours(tmp_path / "deep" / "curves.png") > 50

    features = torch.randn(60, 8) + 5 * torch.eye(8)[torch.arange(60) % 3]
    embedding_map(features, torch.arange(60) % 3, ["a", "b", "c"], tmp_path / "map.png", "three classes")
    assert colours(tmp_path / "map.png") > 20
