"""Timing contestants side by side on a machine that is never quite idle."""

import os
import statistics
import time
from collections.abc import Callable

from gptjax.core import console

SETTLE_SECONDS = 0.3  # until the idle threads of the last contestant stop spinning


def available_cores() -> int:
    """The cores this process may run on, which may be fewer than there are."""
    if hasattr(os, 'sched_getaffinity'):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def summarize(step_seconds: list[float], tokens: int) -> dict:
    """The speed of one contestant.

    Args:
        step_seconds: of each timed step, warm-up left out.
        tokens: in one step.

    Returns:
        The number of steps, the median and the least seconds of a step, and
        tokens per second at each: by the median, and by the least (`best_…`),
        which other load on the machine disturbs less.
    """
    median, least = statistics.median(step_seconds), min(step_seconds)
    return {
        'steps': len(step_seconds),
        'median_seconds': median,
        'least_seconds': least,
        'tokens_per_second': tokens / median,
        'best_tokens_per_second': tokens / least,
    }


def interleave(
    contestants: dict[str, Callable[[int], list[float]]],
    rounds: int,
    steps: int,
) -> dict[str, list[list[float]]]:
    """Lets each contestant do a few steps in turn, round after round.

    A machine's speed drifts with its heat and its other load. Contestants that
    take turns meet the same drift, so their ratios hold where their speeds do
    not. The order turns by one each round: nobody always comes first.

    Args:
        contestants: name → `go(steps)`, which returns the seconds of each step.
        rounds: turns of each contestant.
        steps: steps in one turn.

    Returns:
        name → for each round, the seconds of each of its steps.
    """
    names = list(contestants)
    seconds = {name: [] for name in names}
    with console.progress_bar('timing', rounds * len(names), 'turns') as advance:
        for round_ in range(rounds):
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(SETTLE_SECONDS)
                seconds[name].append(contestants[name](steps))
                advance(1, name)
    return seconds


def speedup(ours: list[list[float]], theirs: list[list[float]]) -> dict:
    """How many times as fast `ours` is, compared within each round.

    Args:
        ours, theirs: the rounds of two contestants, as `interleave` returns them,
            with as many tokens in a step.

    Returns:
        `ratio`, the median over the rounds of the ratio of their median steps, and
        `low` and `high`, the least and the greatest.
    """
    ratios = [
        statistics.median(their_round) / statistics.median(our_round)
        for our_round, their_round in zip(ours, theirs, strict=True)
    ]
    return {
        'ratio': statistics.median(ratios),
        'low': min(ratios),
        'high': max(ratios),
    }
