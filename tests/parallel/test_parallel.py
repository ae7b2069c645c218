from src.errors import UserError
from src.parallel import collectives, launch
from src.parallel.agreement import Agreement
from src.parallel.launch import Launch, discover
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234",
}  # fmt: skip
SLURM = {
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "12", "SLURM_LOCALID": "4", "SLURM_JOB_ID": "77",
}  # fmt: skip


def test_ways_to_be_launched():
    assert discover({}) == Launch(0, 1, 0, None)
    assert discover(TORCHRUN) == Launch(3, 4, 1, "env://")
    assert discover(SLURM, "tcp://node:40000") == Launch(12, 16, 4, "tcp://node:40000")
    assert discover({**SLURM, "MASTER_ADDR": "a", "MASTER_PORT": "5"}).init_method == "tcp://a:5"
    # torchrun inside an allocation wins; a batch script without srun is one process
    assert discover({**SLURM, **TORCHRUN}) == Launch(3, 4, 1, "env://")
    assert discover({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}).size == 1


@pytest.mark.parametrize(
    ("environ", "url", "message"),
    [
        ({"RANK": "0"}, "env://", "WORLD_SIZE"),
        ({**TORCHRUN, "RANK": "x"}, "env://", "not a number"),
        ({**TORCHRUN, "RANK": "4"}, "env://", "does not exist in a world of 4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "env://", "MASTER_ADDR"),
        ({}, "http://x", "expected env://"),
        (SLURM, "env://", "--dist_url"),
    ],
)
def test_contradictory_settings_are_refused(environ, url, message, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no scontrol
    with pytest.raises(UserError, match=message):
        discover(environ, url)


def test_devices():
    assert launch.choose_device("cpu", 0) == torch.device("cpu")
    for name in ("gpu", "mps", "cuda:x"):
        with pytest.raises(UserError, match="expected auto, cpu or cuda"):
            launch.choose_device(name, 0)
    if not torch.cuda.is_available():
        assert launch.choose_device("auto", 0) == torch.device("cpu")
        with pytest.raises(UserError, match="no usable GPU"):
            launch.choose_device("cuda", 0)


def _collect():
    rank = collectives.rank()
    rows = torch.full((rank + 1, 2), float(rank))
    gathered = collectives.gather_to_main({"rank": rank})
    shared = collectives.broadcast_object("from main" if rank == 0 else None)
    return collectives.all_gather_rows(rows).numpy(), gathered, shared


def test_collectives():
    results = on_ranks(3, _collect)
    for rank, (rows, gathered, shared) in enumerate(results):
        np.testing.assert_array_equal(rows[:, 0], [0, 1, 1, 2, 2, 2])
        assert gathered == ([{"rank": 0}, {"rank": 1}, {"rank": 2}] if rank == 0 else None)
        assert shared == "from main"
    assert collectives.gather_to_main(5) == [5]
    assert collectives.broadcast_object(5) == 5


def _sum():
    rank = collectives.rank()
    x = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    total = collectives.sum_with_gradient(x)
    (total * (rank + 1) * torch.tensor([1.0, 10.0])).sum().backward()
    return total.detach().numpy(), x.grad.numpy()


def test_the_sum_has_the_gradient_of_all_ranks_losses():
    for total, grad in on_ranks(2, _sum):
        np.testing.assert_array_equal(total, [3, 4])
        np.testing.assert_array_equal(grad, [3, 30])
    x = torch.ones(2)
    assert collectives.sum_with_gradient(x) is x


def _agree():
    agreement = Agreement()
    answers = [agreement.any(collectives.rank() == 1 and step == 3) for step in range(6)]
    agreement.finish()
    return answers


def test_a_flag_of_one_rank_is_seen_by_all_at_the_same_step():
    first, second = on_ranks(2, _agree)
    assert first == second
    assert first.index(True) == 4
    assert Agreement().any(True)
