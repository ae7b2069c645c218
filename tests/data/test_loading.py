from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from src.data.datasets import FolderImages
from src.data.loading import MAX_UNREADABLE_IN_A_ROW, ViewDataset, make_loader
from src.data.to_device import ToDevice
from src.data.sampling import Position, ResumableBatches, SequentialBatches
from src.data.view_sets import multi_crop
from src.errors import UserError

VIEWS = multi_crop([32, 16], [2, 2], [0.3, 0.1], [1.0, 0.3])


def epoch_of(patches, workers, epoch=3, first_batch=0):
    source = FolderImages(patches / "train")
    batches = ResumableBatches(len(source), 16)
    loader = make_loader(ViewDataset(source, VIEWS, seed=7), batches, workers=workers)
    batches.seek(epoch, first_batch)
    return list(loader)


def test_the_same_epoch_gives_the_same_pixels_whatever_the_workers(patches):
    reference = epoch_of(patches, workers=0)
    assert len(reference) == 6
    assert [crop.shape[-1] for crop in reference[0].crops] == [32, 32, 16, 16]
    assert reference[0].crops[0].dtype == torch.uint8
    for workers in (1, 3):
        for ours, theirs in zip(epoch_of(patches, workers), reference, strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.labels, theirs.labels)
            for a, b in zip(ours.crops, theirs.crops, strict=True):
                assert torch.equal(a, b)


def test_boxes_and_flips_of_the_crops_travel_with_the_batch(patches):
    """Cutting the boxes out of the images again gives the crops (before any change of colours)."""
    source = FolderImages(patches / "train")
    plain = [replace(view, jitter_probability=0.0, grayscale=0.0, blur=0.0) for view in VIEWS]
    loader = make_loader(ViewDataset(source, plain, seed=7), ResumableBatches(len(source), 16), workers=0)
    batch = next(iter(loader))
    assert batch.boxes.shape == (4, 16, 4)
    assert batch.flips.shape == (4, 16)
    assert 0 < batch.flips.float().mean() < 1
    for view in range(4):
        for row in range(16):
            image = torch.from_numpy(np.array(source.open(int(batch.indices[row])).convert("RGB"))).permute(2, 0, 1)
            top, left, height, width = batch.boxes[view, row].tolist()
            box = image[None, :, top : top + height, left : left + width]
            size = batch.crops[view].shape[-1]
            cut = torch.nn.functional.interpolate(box, size=(size, size), mode="bilinear", antialias=True)[0]
            assert torch.equal(cut.flip(2) if batch.flips[view, row] else cut, batch.crops[view][row])
    assert batch.to(torch.device("cpu")).boxes is not None


def test_an_epoch_can_start_at_any_batch(patches):
    reference = epoch_of(patches, workers=0)
    later = epoch_of(patches, workers=2, first_batch=4)
    assert len(later) == 2
    for ours, theirs in zip(later, reference[4:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))


def test_epochs_differ(patches):
    a, b = epoch_of(patches, 0, epoch=0), epoch_of(patches, 0, epoch=1)
    assert not torch.equal(a[0].indices, b[0].indices)
    order = torch.cat([batch.indices for batch in a])
    assert sorted(order.tolist()) == list(range(96))


@pytest.mark.parametrize(("images", "world"), [(96, 1), (97, 2), (10, 4), (3, 8)])
def test_order_is_that_of_torchs_distributed_sampler(images, world):
    for rank in range(world):
        theirs = DistributedSampler(range(images), num_replicas=world, rank=rank, seed=0)
        theirs.set_epoch(5)
        ours = ResumableBatches(images, 1, rank=rank, world_size=world)
        ours.seek(5)
        assert [batch[0].image for batch in ours] == list(theirs)


def test_number_of_batches_is_the_published_one():
    """floor(ceil(N / W) / B), spec section 1.4."""
    imagenet = 1_281_167
    for world, batch, steps in ((64, 64, 312), (128, 32, 312), (64, 40, 500), (4, 64, 5004), (8, 32, 5004)):
        assert len(ResumableBatches(imagenet, batch, world_size=world)) == steps
    assert len(ResumableBatches(10, 4, drop_last=False)) == 3
    with pytest.raises(UserError, match="do not fill one batch"):
        ResumableBatches(63, 64)


def test_sequential_batches_cover_every_image_once():
    seen = [p.image for rank in range(3) for batch in SequentialBatches(10, 2, rank=rank, world_size=3) for p in batch]
    assert sorted(seen) == list(range(10))


def test_unreadable_images_are_replaced_counted_and_named(tmp_path, patches):
    for i, path in enumerate(sorted((patches / "train" / "leaf").iterdir())[:6]):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes())
    (tmp_path / "1.png").write_bytes(b"not an image")
    torn = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(torn[: len(torn) // 2])
    source = FolderImages(tmp_path)
    dataset = ViewDataset(source, VIEWS)
    sample = dataset[Position(0, 1)]
    assert sample.image == 3
    assert [name.split(" ")[0] for name in sample.unreadable] == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    good = dataset[Position(0, 3)]
    assert all(torch.equal(a, b) for a, b in zip(sample.views, good.views, strict=True))
    batches = ResumableBatches(6, 6)
    for workers in (0, 2):
        (batch,) = list(make_loader(dataset, batches, workers=workers))
        assert len(batch) == 6
        assert any("1.png" in name for name in batch.unreadable)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_broken_images_is_one_clear_error(tmp_path, workers):
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    dataset = ViewDataset(FolderImages(tmp_path), VIEWS)
    with pytest.raises(UserError, match=f"{MAX_UNREADABLE_IN_A_ROW} images in a row could not be read"):
        list(make_loader(dataset, ResumableBatches(30, 2), workers=workers))


def test_to_device_is_to_tensor_and_normalize(patches):
    batch = epoch_of(patches, 0)[0]
    prepared = ToDevice(torch.device("cpu"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))(batch)
    expected = (batch.crops[0].numpy() / 255 - 0.5) / 0.25
    np.testing.assert_allclose(prepared.crops[0].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert batch.crops[0].dtype == torch.uint8
