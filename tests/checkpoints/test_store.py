import os
import pickle

from src.checkpoints.files import describe_mismatch, read_file, write_atomically
from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore, read_run
from src.clock import Clock
from src.errors import UserError
from src.optim.larc import LARC
from src.parallel import collectives
from tests.helpers import on_ranks

import pytest
import torch
from torch import nn


class TinyMethod(nn.Module):
    per_rank_buffers = {"queue": 0}  # noqa: RUF012

    def __init__(self, rows=4):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("queue", torch.zeros(rows, 2))


def make_state(rows=4, step=0, batch_size=8, steps_per_epoch=10):
    torch.manual_seed(0)
    method = TinyMethod(rows)
    optimizer = LARC(method.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return RunState(method, optimizer, scaler, Clock(steps_per_epoch, 4, step=step), batch_size)


def train(state, steps):
    for _ in range(steps):
        x = torch.randn(5, 3)
        state.method.linear(x).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.method.queue.add_(torch.randn(state.method.queue.shape))
        state.clock.step += 1


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_resume_restores_everything_bit_for_bit(tmp_path):
    undisturbed = make_state()
    train(undisturbed, 6)
    first = make_state()
    train(first, 3)
    CheckpointStore(tmp_path, {"arch": "x"}).save(first)
    second = make_state()
    torch.manual_seed(99)
    assert CheckpointStore(tmp_path, {}).resume(second, print) == tmp_path / "checkpoints" / "step-000000003.pth"
    assert second.clock.step == 3
    train(second, 3)
    assert same(second.method, undisturbed.method)
    for a, b in zip(second.optimizer.state.values(), undisturbed.optimizer.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_which_files_are_kept(tmp_path):
    state = make_state()
    store = CheckpointStore(tmp_path, {}, frequency=2, keep_last=2)
    for epoch in range(4):
        state.clock.step = 10 * epoch + 5
        store.save(state)
        state.clock.step = 10 * (epoch + 1)
        store.save(state, epoch_finished=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["ckp-0.pth", "ckp-2.pth", "ckp-3.pth", "step-000000035.pth", "step-000000040.pth"]
    assert read_run(tmp_path / "checkpoint.pth.tar")["step"] == 40
    assert read_run(tmp_path / "checkpoints" / "ckp-2.pth")["epoch"] == 3
    assert not list(tmp_path.rglob("*.tmp"))


def damage(path, how):
    content = path.read_bytes()
    a_tensor = torch.load(path, weights_only=True)["per_rank"][0]["rng"]["cpu"].numpy().tobytes()
    path.unlink()  # the newest file has a second name, which must stay whole
    if how == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        torch.save({"state_dict": {}}, path)
    elif how == "flipped":
        position = content.index(a_tensor) + len(a_tensor) // 2
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    else:
        path.write_bytes(pickle.dumps(os.getcwd))


@pytest.mark.parametrize("how", ["torn", "empty", "foreign", "flipped", "code"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path, how):
    state = make_state()
    store = CheckpointStore(tmp_path, {}, keep_last=3)
    for step in (5, 7):
        state.clock.step = step
        store.save(state)
    (tmp_path / "checkpoint.pth.tar").unlink()
    damage(tmp_path / "checkpoints" / "step-000000007.pth", how)
    warnings = []
    assert store.resume(make_state(), warnings.append).name == "step-000000005.pth"
    assert len(warnings) == 1
    assert "step-000000007.pth" in warnings[0]
    assert "\n" not in warnings[0]
    damage(tmp_path / "checkpoints" / "step-000000005.pth", how)
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        store.resume(make_state(), warnings.append)


def test_loading_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="could run code"):
        read_file(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_another_model_is_refused_with_counts(tmp_path):
    state = make_state()
    store = CheckpointStore(tmp_path, {})
    store.save(state)
    other = make_state()
    other.method.linear = nn.Linear(4, 2)
    with pytest.raises(UserError, match=r"1 of 2 entries match.*another shape \(such as linear.weight"):
        store.resume(other, print)
    assert describe_mismatch({}, {"a": torch.zeros(1)}, "x") == (
        "x does not fit this model: 0 of 0 entries match, 1 unexpected (such as a)"
    )


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _save_on_two(folder):
    state = make_state(step=12)
    state.method.queue.copy_(torch.arange(8.0).view(4, 2) + 100 * collectives.rank())
    torch.manual_seed(collectives.rank())
    CheckpointStore(folder, {}).save(state)
    return torch.get_rng_state().numpy()


def _load_on_two(folder):
    state = make_state()
    CheckpointStore(folder, {}).resume(state, print)
    return state.method.queue.numpy(), torch.get_rng_state().numpy(), state.clock.step


def test_each_rank_gets_its_own_buffers_and_random_state(tmp_path):
    states = on_ranks(2, _save_on_two, tmp_path)
    for rank, (queue, rng, step) in enumerate(on_ranks(2, _load_on_two, tmp_path)):
        assert queue[0, 0] == 100 * rank
        assert (rng == states[rank]).all()
        assert step == 12


def test_another_number_of_ranks_shares_out_anew_and_says_so(tmp_path):
    on_ranks(2, _save_on_two, tmp_path)
    state = make_state(rows=8, batch_size=4, steps_per_epoch=20)
    warnings = []
    CheckpointStore(tmp_path, {}).resume(state, warnings.append)
    # row i of every old rank before row i + 1 of any: the newest rows stay in front
    assert state.method.queue[:, 0].tolist() == [0, 100, 2, 102, 4, 104, 6, 106]
    assert state.clock.step == 1 * 20 + 2 * 8 // 4  # the same epoch and share of it
    assert len(warnings) == 1
    assert "not bit-exact" in warnings[0]


def test_changed_settings_are_named(tmp_path):
    CheckpointStore(tmp_path, {"epochs": 100, "base_lr": 0.6, "workers": 4}).save(make_state())
    warnings = []
    CheckpointStore(tmp_path, {"epochs": 200, "base_lr": 0.6, "workers": 2, "new": 1}).resume(
        make_state(), warnings.append
    )
    assert warnings == ["settings changed since the checkpoint was written: epochs 100 -> 200"]


def test_resume_from_a_path(tmp_path):
    store = CheckpointStore(tmp_path / "a", {})
    store.save(make_state(step=5))
    state = make_state()
    CheckpointStore(tmp_path / "b", {}).resume(state, print, str(tmp_path / "a" / "checkpoint.pth.tar"))
    assert state.clock.step == 5
    with pytest.raises(UserError, match="does not exist"):
        store.resume(state, print, str(tmp_path / "nowhere.pth"))
    for which in ("auto", "never"):
        assert CheckpointStore(tmp_path / "c", {}).resume(state, print, which) is None
    with pytest.raises(UserError, match="holds checkpoints"):
        store.resume(state, print, "never")
