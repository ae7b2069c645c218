"""Learning rates and other schedules: pure functions of where training is, so that a resume needs no state."""

import bisect
import math
from collections.abc import Sequence


def half_cosine(done: float, total: float, base: float, final: float = 0.0) -> float:
    """From ``base`` at the start to ``final`` when all of ``total`` is done, by half a cosine (Loshchilov, Hutter)."""
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * done / total))


def warmup_cosine(
    step: int, *, total: int, warmup: int = 0, start: float = 0.0, base: float, final: float = 0.0
) -> float:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017), in steps (or epochs) counted from zero.

    The warm-up has ``warmup`` evenly spaced values from ``start`` to ``base``, both included; the cosine starts at
    ``base`` again, so that value is used twice, and stops one step short of ``final``. These are the end points of
    the published SwAV runs.

    Args:
        step: 0 <= step; past ``total`` the schedule stays at ``final``.
        total: number of steps of the whole schedule, warm-up included.
        warmup: number of warm-up steps.
        start, base, final: first warm-up value, peak, and the limit of the cosine.
    """
    if step < warmup:
        if warmup == 1:
            return float(start)
        if step == warmup - 1:
            return float(base)
        return start + step * ((base - start) / (warmup - 1))
    if step >= total:
        return float(final)
    return half_cosine(step - warmup, total - warmup, base, final)


def phased(
    step: int,
    *,
    total: int,
    switch: int,
    warmups: tuple[int, int],
    bases: tuple[float, float],
    floor: float = 0.001,
) -> float:
    """TWIST's learning rate: two phases, each with a linear warm-up from 0 and a cosine to ``floor`` times its base.

    Args:
        step: the first one has 0.
        total: steps of both phases.
        switch: the second phase's first step; it starts at 0 again.
        warmups: steps of each phase's warm-up. While the first one lasts, it goes before the switch.
        bases: each phase's peak.
    """
    if step < warmups[0]:
        return bases[0] * step / warmups[0]
    second = step >= switch
    first_step, last = (switch, total) if second else (0, switch)
    warmup, base = warmups[second], bases[second]
    done = step - first_step
    if done < warmup:
        return base * done / warmup
    progress = min(1.0, (done - warmup) / max(1, last - first_step - warmup))
    return base * half_cosine(progress, 1.0, 1.0, floor)


def intl_rate(step: int, *, total: int, warmup: int, base: float, floor: float = 0.001) -> float:
    """INTL's learning rate: the warm-up's first step has ``base / warmup``, its last one ``base``; the very last step
    ``floor * base``."""
    if step < warmup:
        return base * (step + 1) / warmup
    share = half_cosine(min(1.0, (step - warmup + 1) / (total - warmup)), 1.0, 1.0)
    return base * (share + floor * (1 - share))


def dropped_rate(
    step: int, *, steps_per_epoch: int, warmup: int, base: float, milestones: Sequence[int], gamma: float
) -> float:
    """CW-RGP's learning rate on small data: linear warm-up by step, then times ``gamma`` from each milestone on.

    A milestone (an epoch) that is reached within the warm-up has no effect.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    reached = [m for m in milestones if warmup <= m * steps_per_epoch <= step]
    return base * gamma ** len(reached)


def epoch_cosine_rate(step: int, *, steps_per_epoch: int, epochs: int, warmup: int, base: float) -> float:
    """CW-RGP's learning rate on ImageNet: a cosine by epoch, and a warm-up by step over it.

    The rest of the epoch in which the warm-up ends stays at ``base``.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    epoch = step // steps_per_epoch
    if epoch * steps_per_epoch < warmup:
        return base
    return half_cosine(epoch, epochs, base)


def fractional_cosine(epoch: float, *, epochs: int, warmup: int, base: float) -> float:
    """MoCo-v3's and W2SSL's learning rate: linear from 0 over ``warmup`` epochs, then half a cosine to 0, by step.

    ``epoch`` counts steps as parts of epochs.
    """
    if epoch < warmup:
        return base * epoch / warmup
    return half_cosine(epoch - warmup, epochs - warmup, base)


def warm_restarts(epoch: float, *, first: int, factor: int, base: float, floor: float = 0.0) -> float:
    """Cosines from ``base`` to ``floor`` with restarts (Loshchilov & Hutter 2017).

    The first lasts ``first`` epochs, each other ``factor`` times as long as the one before.
    """
    length = float(first)
    while epoch >= length:
        epoch -= length
        length *= factor
    return half_cosine(epoch, length, base, floor)


def multistep(epoch: int, *, base: float, milestones: Sequence[int], gamma: float) -> float:
    """``base * gamma ** (number of milestones reached)``; a milestone counts from its own epoch on."""
    return base * gamma ** bisect.bisect_right(sorted(milestones), epoch)
