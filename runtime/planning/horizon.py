"""What a plan looks ahead at: the intervals of a forecast as steps, fewer and longer the farther they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from runtime.planning.forecast import QUIET, Turn

EVENTS_AHEAD = 4.0  # a plan looks so many events ahead
FARTHEST = 720  # but no more intervals than these
BUSIEST = 0.85  # the most likely that a step of merged intervals may make an event


@dataclass(frozen=True)
class Step:
    """What happens at the start of a step, and how long it lasts in seconds."""

    turns: tuple[Turn, ...]
    span_s: float


def beyond(turns: Sequence[tuple[Turn, ...]]) -> tuple[tuple[Turn, ...], ...]:
    """The look-ahead and what lies beyond: where it ends uncertain, drawn out by more of its end.

    Without it no change would pay near the end of the look-ahead, though the job goes on. The calmer the end,
    the longer a change may take to pay for itself, and the farther it is drawn out: to about so many events
    as make the layouts of now irrelevant. A look-ahead that ends sure of itself is taken at its word.
    """
    turns = tuple(turns)
    if not turns or len(turns[-1]) == 1:
        return turns
    eventful = 1 - _quiet(turns[-1])
    more = min(FARTHEST, max(2 * len(turns), round(EVENTS_AHEAD / max(eventful, 1e-9))))
    return turns + (turns[-1],) * more


def steps_of(turns: Sequence[tuple[Turn, ...]], interval_s: float) -> tuple[Step, ...]:
    """Intervals as steps of the programme: alike ones are merged, the more the farther they are.

    A quiet interval only makes the step before it longer, which changes nothing. Alike intervals that may
    bring events are merged 1, 1, 2, 3, 5, .. at a time, with as many times the probability of an event.
    """
    steps: list[Step] = []
    start = 0
    while start < len(turns):
        end = start + 1
        while end < len(turns) and turns[end] == turns[start]:
            end += 1
        run, left = turns[start], end - start
        if len(run) == 1:
            sure = run[0]
            if not (sure.losses or sure.gains):
                steps.append(Step(run, interval_s * left))
            else:
                steps += [Step(run, interval_s)] * left
        else:
            width, following = 1, 1
            widest = max(1, int(log(1 - BUSIEST) / log(max(1e-9, min(_quiet(run), 1 - 1e-9)))))
            while left:
                width = min(width, left, widest)
                steps.append(Step(_times(run, width), interval_s * width))
                left -= width
                width, following = following, width + following
        start = end
    merged: list[Step] = []
    for step in steps:
        if merged and step.turns == QUIET:
            merged[-1] = Step(merged[-1].turns, merged[-1].span_s + step.span_s)
        else:
            merged.append(step)
    return tuple(merged)


def _quiet(turns: tuple[Turn, ...]) -> float:
    return sum(turn.probability for turn in turns if not (turn.losses or turn.gains))


def _times(turns: tuple[Turn, ...], count: int) -> tuple[Turn, ...]:
    """What `count` intervals bring, taken as one: at most one event, as likely as in all of them."""
    quiet = _quiet(turns)
    if count == 1 or quiet <= 0 or quiet >= 1:
        return turns
    more = (1 - quiet**count) / (1 - quiet)
    events = tuple(
        Turn(turn.losses, turn.gains, turn.probability * more) for turn in turns if turn.losses or turn.gains
    )
    return (Turn(0, 0, quiet**count), *events)
