"""Threads that stand for ranks: what they bring to a meeting, in which order, and how they end."""

import threading

from src.errors import UserError
from src.parallel import collectives, virtual
from src.parallel.virtual import Players
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch
import torch.distributed as dist


def of_ranks(count, task, process=0, processes=1):
    """What ``task(rank)`` gives in each of ``count`` ranks of this process."""
    return Players(count, process, processes).run([lambda: task(collectives.rank())] * count)


def everything(rank):
    """Each collective once; numbers that tell who has brought what."""
    own = torch.tensor([1.0, 10.0]) * (rank + 1)
    total = collectives.all_reduce_(own.clone())
    largest = collectives.all_reduce_(own.clone(), dist.ReduceOp.MAX)
    least = collectives.all_reduce_(own.clone(), dist.ReduceOp.MIN)
    order = torch.tensor([3, 5, 0, 7, 2, 1, 6, 4])
    dealt = collectives.permute_rows(torch.tensor([2.0, 2.0]) * rank + torch.tensor([0.0, 1.0]), order)
    rows = collectives.all_gather_rows(torch.full((rank + 1,), float(rank)))
    first = [torch.tensor([float(rank)])]
    collectives.broadcast_(first)
    collectives.barrier()
    # each rank's loss weighs what it gets by its own number
    x = (own / 3).requires_grad_()
    loss = (collectives.sum_with_gradient(x**2) * (rank + 1)).sum()
    loss = loss + (collectives.gather_with_gradient(x[None] ** 3) * (rank + 2)).sum()
    return [total, largest, least, dealt, rows, *first, torch.tensor([collectives.world_size(), rank])], loss, x


def in_processes(count):
    process, processes = dist.get_rank(), dist.get_world_size()
    if count == 1:
        found = [everything(process)]
    else:
        found = of_ranks(count, everything, process, processes)
    sum(loss for _, loss, _ in found).backward()
    return [[*(tensor.numpy() for tensor in values), loss.item(), x.grad.numpy()] for values, loss, x in found]


def test_collectives_are_those_of_processes():
    expected = [values for process in on_ranks(4, in_processes, 1) for values in process]
    for processes in (2, 1):
        found = [values for process in on_ranks(processes, in_processes, 4 // processes) for values in process]
        for ours, theirs in zip(found, expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)


def test_one_runs_at_a_time_in_their_order_and_each_has_its_turns_around_it():
    seen, turns = [], []

    def task(rank):
        for _ in range(2):
            seen.append(rank)
            collectives.barrier()
        return rank

    players = Players(3, before_turn=lambda n: turns.append(f"+{n}"), after_turn=lambda n: turns.append(f"-{n}"))
    assert players.run([lambda: task(collectives.rank())] * 3, lambda result: result * 10) == [0, 10, 20]
    assert seen == [0, 1, 2, 0, 1, 2]
    assert turns == [f"{sign}{n}" for _ in range(3) for n in range(3) for sign in "+-"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virtual rank")]


def test_outside_of_them_the_process_is_the_rank():
    assert virtual.here() is None
    assert virtual.keeps_state()
    assert virtual.once(lambda: 5) == 5
    assert (collectives.rank(), collectives.world_size()) == (0, 1)


def test_once_is_computed_by_the_first_with_its_gradients():
    calls = []

    def task(rank):
        x = torch.tensor(float(rank + 1), requires_grad=True)
        total = collectives.sum_with_gradient(x)
        return virtual.keeps_state(), virtual.once(lambda: calls.append(rank) or total**2), x

    found = of_ranks(3, task)
    assert calls == [0]
    assert [first for first, _, _ in found] == [True, False, False]
    torch.stack([value for _, value, _ in found]).mean().backward()
    assert [x.grad.item() for _, _, x in found] == [12.0] * 3


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_of_one_ends_all_and_is_raised(failing):
    ended = []

    def task(rank):
        try:
            collectives.barrier()
            if rank == failing:
                raise UserError("no")
            collectives.barrier()
        finally:
            ended.append(rank)

    players = Players(3)
    with pytest.raises(UserError, match="no"):
        players.run([lambda: task(collectives.rank())] * 3)
    assert sorted(ended) == [0, 1, 2]
    assert players.run([lambda: collectives.rank()] * 3) == [0, 1, 2]  # and they can go on


def test_one_that_does_not_come_is_an_error():
    with pytest.raises(RuntimeError, match="have come to their end"):
        of_ranks(2, lambda rank: collectives.barrier() if rank else None)


def test_an_interruption_between_turns_ends_all():
    class Stop(Exception):
        pass

    def before_turn(number):
        turns.append(number)
        if len(turns) == 5:
            raise Stop

    turns = []
    with pytest.raises(Stop):
        Players(3, before_turn=before_turn).run([lambda: [collectives.barrier() for _ in range(9)]] * 3)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virtual rank")]


def test_the_leader_computes_for_a_rank_and_its_errors_are_the_ranks():
    def task(rank):
        name = virtual.by_the_leader(lambda: (threading.current_thread().name, collectives.world_size()))
        try:
            virtual.by_the_leader(lambda: 1 / 0)
        except ZeroDivisionError:
            return name
        return None

    assert of_ranks(2, task) == [(threading.current_thread().name, 1)] * 2
    assert virtual.by_the_leader(lambda: 7) == 7
