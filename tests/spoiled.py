"""Steps with a mistake put into them, to see that the audit names it.

    python -m tests.spoiled PATCHES FOLDER

Writes what it names, by mistake, to ``FOLDER/spoiled.json``.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from unittest import mock

from src.checkpoints.background import Snapshot
from src.losses.twist import twist_loss
from src.ops.whitening import Kind, whitening_matrix
from src.optim.plain import adam
from tests.audit import Audit, audit
from tests.steps import make_teacher
from tests.watch import Record, pretended_device

import torch
from torch import Tensor


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


def _copied_without_pinning(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _copied_in_turn(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device)


def _assigned_by_list(self: object, views: Tensor) -> Tensor:
    return views[list(self.crops_for_assign)]  # type: ignore[attr-defined]


def _weighted_by_a_new_tensor(logits_VBC: Tensor, **options: Any) -> Any:
    weights = torch.tensor([1.0, 1.0], device=logits_VBC.device)
    return twist_loss(logits_VBC * weights[0], **options)


# What a step does with a weight -> what the audit says of it
IN_A_STEP: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "item": (lambda w: w.flatten()[0].item(), "waits: aten._local_scalar_dense"),
    "float": (lambda w: float(w.sum()), "waits: aten._local_scalar_dense"),
    "bool": (lambda w: bool(w.sum() > 0), "waits: aten._local_scalar_dense"),
    "tolist": (lambda w: w.tolist(), "waits: copy from the device"),
    "cpu": (lambda w: w.cpu(), "waits: copy from the device"),
    "print": (lambda w: repr(w.sum().item()), "waits: aten._local_scalar_dense"),
    "nonzero": (lambda w: w.nonzero(), "waits: aten.nonzero"),
    "where": (lambda w: torch.where(w > 0), "waits: aten.nonzero"),
    "mask": (lambda w: w[w > 0], "waits: aten.index by a mask"),
    "masked values": (lambda w: w.clone().index_put_((w > 0,), w[w > 0]), "by a mask"),
    "unique": (lambda w: w.flatten().unique(), "waits: aten._unique2"),
    "equal": (lambda w: torch.equal(w, w), "waits: aten.equal"),
    "list": (lambda w: w[[0, 1]], "waits: copy to the device"),
    "index of the CPU": (lambda w: w[torch.arange(2)], "waits: aten.index by a list or a tensor of the CPU"),
    "tensor": (lambda w: torch.tensor([1.0, 2.0], device=w.device), "waits: copy to the device"),
    "scalar": (lambda w: torch.tensor(1.0, device=w.device), "waits: copy to the device"),
    "pageable": (lambda w: torch.ones(3).to(w.device, non_blocking=True), "waits: copy to the device"),
    "blocking": (lambda w: torch.ones(3).pin_memory().to(w.device), "waits: copy to the device"),
    "cholesky": (lambda w: torch.linalg.cholesky(torch.eye(3, device=w.device)), "waits: aten._linalg_check_errors"),
    "two devices": (lambda w: torch.ones_like(w, device="cpu") + w, "mixes devices: aten.add"),
    "float64": (lambda w: w.double() * 2, "float64: aten._to_copy"),
    "sizes": (lambda w: torch.zeros(int(torch.randint(1, 10**6, ())), device=w.device), "sizes change"),
}
# What is well
ALLOWED: dict[str, Callable[[Tensor], object]] = {
    "one value under a mask": lambda w: w.clone().index_put_((w > 0,), torch.zeros((), device=w.device)),
    "pinned": lambda w: torch.ones(3).pin_memory().to(w.device, non_blocking=True),
    "made pinned": lambda w: torch.ones(3, pin_memory=True)[1:].to(w.device, non_blocking=True),
    "made there": lambda w: torch.full((3,), 2.0, device=w.device),
    "a number of the CPU": lambda w: w * torch.tensor(2.0),
    "slices": lambda w: w[0:2, ..., None],
}


def _order_of_a_snapshot(weight: Tensor) -> list[str]:
    """What a snapshot asks of streams, which the pretended device does not have."""
    order: list[str] = []
    training, copies, copied = mock.MagicMock(), mock.MagicMock(), mock.MagicMock()
    copies.wait_stream.side_effect = lambda stream: order.append("copies wait for the training")
    copied.record.side_effect = lambda stream: order.append("copied" if stream is copies else "?")
    training.wait_event.side_effect = lambda event: order.append(
        "training waits for copies" if event is copied else "?"
    )
    copied.synchronize.side_effect = lambda: order.append("writer waits for copies")
    with (
        mock.patch.object(torch, "Stream", return_value=copies),
        mock.patch.object(torch, "Event", return_value=copied),
        mock.patch.object(torch.accelerator, "current_stream", return_value=training),
        mock.patch.object(torch.accelerator, "set_device_index"),
        mock.patch.object(Tensor, "record_stream") as kept_for,
    ):
        snapshot = Snapshot()
        first = snapshot.take({"a": weight, "b": [weight * 2]})
        order.clear()
        again = snapshot.take({"a": weight, "b": [weight * 3]})
        snapshot.arrive()
        assert copies.__enter__.call_count == 4, "each copy is made on the stream"
        copies.wait_stream.assert_called_with(training)
        copied.record.assert_called_with(copies)
        training.wait_event.assert_called_with(copied)
        assert kept_for.call_args_list == [mock.call(copies)] * 4
        assert again["a"] is first["a"]
        assert again["a"].is_pinned()
        assert torch.equal(again["b"][0], weight.cpu() * 3)
    return order


# What is true on a device only
FACTS: dict[str, Callable[[Tensor], bool]] = {
    "Adam is fused": lambda w: bool(adam([w.detach().requires_grad_()], lr=0.1).param_groups[0]["fused"]),
    "singular covariances are whitened to NaN": lambda w: all(
        torch.isnan(whitening_matrix(-w.T @ w, kind)).all().item() for kind in get_args(Kind)
    ),
    "a training waits for the copies of a snapshot, and its writer, too": lambda w: (
        _order_of_a_snapshot(w)
        == ["copies wait for the training", "copied", "training waits for copies", "writer waits for copies"]
    ),
    "and others are whitened": lambda w: all(
        torch.isfinite(whitening_matrix(torch.eye(3, device=w.device), kind)).all().item() for kind in get_args(Kind)
    ),
}
# What the steps of this project once did: the line, what is replaced, by what
ONCE = {
    "SwAV's list": ("swav", "src.methods.prototype_base.PrototypeMethod.of_assigned", _assigned_by_list),
    "TWIST's numbers": ("twist", "src.methods.twist.twist_loss", _weighted_by_a_new_tensor),
    "MoCo's permutation": ("moco", "src.parallel.collectives.sent", _copied),
    "W2SSL's permutation": ("w2ssl", "src.methods.w2ssl.sent", _copied_without_pinning),
    "CW-RGP's permutation": ("cwrgp", "src.methods.cwrgp.sent", _copied_in_turn),
}


def main(patches: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    make_teacher(patches, folder)
    found: dict[str, Any] = {}
    with pretended_device() as (device, watch):
        weight = torch.ones(3, 4).to(device)
        for name, mistake in {**{name: one for name, (one, _) in IN_A_STEP.items()}, **ALLOWED}.items():
            steps = [Record() for _ in range(4)]
            for step in steps:
                with watch.noting(step):
                    mistake(weight)
            found[name] = Audit("moco", "fp32", [steps]).faults()
        found["facts"] = {name: fact(weight) for name, fact in FACTS.items()}
        for name, (line, target, instead) in ONCE.items():
            with mock.patch(target, instead):
                found[name] = audit(line, "fp32", patches, folder, device, watch, 4).faults()
    (folder / "spoiled.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
