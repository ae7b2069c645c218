from src.optim.schedules import multistep, warmup_cosine

import numpy as np
import pytest


@pytest.mark.parametrize("warmup", [0, 1, 2, 30])
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_matches_the_published_table(warmup, start):
    """Spec section 6.2: linspace with both ends, then a cosine that starts at the base again."""
    total, base, final = 100, 4.8, 0.0048
    steps = np.arange(total - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / (total - warmup)))
    table = np.concatenate([np.linspace(start, base, warmup), cosine])
    ours = [warmup_cosine(t, total=total, warmup=warmup, start=start, base=base, final=final) for t in range(total)]
    np.testing.assert_allclose(ours, table, rtol=1e-14)
    assert all(type(value) is float for value in ours)


def test_the_base_is_used_twice_and_the_end_is_not_reached():
    value = [warmup_cosine(t, total=40, warmup=10, start=0.0, base=1.0, final=0.0) for t in range(41)]
    assert value[9] == value[10] == 1.0
    assert value[39] > 0.0
    assert value[40] == 0.0


def test_multistep_counts_a_milestone_from_its_own_epoch_on():
    values = [multistep(epoch, base=1.0, milestones=[60, 80], gamma=0.1) for epoch in (0, 59, 60, 79, 80, 99)]
    np.testing.assert_allclose(values, [1, 1, 0.1, 0.1, 0.01, 0.01])
