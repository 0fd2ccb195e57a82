"""Which finished groups the learner may train on now: earliest deadline first, as pure functions.

A group that was started with version s may be trained on by the learner of version v while v - s <= S. Its deadline is
version s + S. A step takes P groups. It may take a set of finished ones if all others, finished or not, can still be
trained before their deadlines: for k = 0..S at most k x P of the rest have one within k versions from now. Otherwise
the learner waits for a group that is due. So the bound holds by construction, and no group is thrown away for its age.
"""

from __future__ import annotations

from collections.abc import Sequence


def take(
    ready: Sequence[int],
    outstanding: Sequence[int],
    *,
    version: int,
    prompts_per_step: int,
    max_staleness: int,
    order: str = "oldest",
) -> list[int] | None:
    """The places in `ready` of the groups to train on now, or None where the learner has to wait.

    Args:
        ready: The versions that finished groups were started with, in the order in which they finished.
        outstanding: The same of groups that were started and have not finished.
        version: v, the learner's.
        prompts_per_step: P, the groups to take.
        max_staleness: S, the bound in versions.
        order: `oldest` takes the oldest version first, of equal ones the first to finish; `first_come` takes those that
            deadlines force, then the first to finish.
    """
    if len(ready) < prompts_per_step:
        return None
    chosen = _forced(ready, outstanding, version, prompts_per_step, max_staleness)
    if chosen is None or len(chosen) > prompts_per_step:
        return None
    by_order = range(len(ready)) if order == "first_come" else sorted(range(len(ready)), key=lambda one: ready[one])
    if order == "oldest":
        chosen = []  # the oldest hold all that are forced
    chosen += [place for place in by_order if place not in chosen][: prompts_per_step - len(chosen)]
    return sorted(chosen)


def waited_for(
    ready: Sequence[int], outstanding: Sequence[int], *, version: int, prompts_per_step: int, max_staleness: int
) -> list[int]:
    """The places in `outstanding` of the groups that the learner has to wait for because they are due, oldest first: as
    many as have to finish. Empty where it can go on, or just has too few groups."""
    for within in range(max_staleness + 1):
        last = version + within - max_staleness  # started with this version or before: due within so many versions
        places = [place for place, start in enumerate(outstanding) if start <= last]
        # Even if the step takes as many of those that are ready as it can.
        left = len(places) + max(sum(start <= last for start in ready) - prompts_per_step, 0)
        missing = left - within * prompts_per_step
        if missing > 0:
            return sorted(places, key=lambda place: outstanding[place])[:missing]
    return []


def _forced(
    ready: Sequence[int], outstanding: Sequence[int], version: int, prompts_per_step: int, max_staleness: int
) -> list[int] | None:
    """Places of the fewest ready groups that have to be taken now, the first to finish of them first; None where even
    all would not do."""
    chosen: list[int] = []
    for within in range(max_staleness + 1):
        last = version + within - max_staleness  # started with this version or before: due within so many versions
        places = [place for place, start in enumerate(ready) if start <= last]
        due = len(places) + sum(start <= last for start in outstanding)
        missing = due - within * prompts_per_step - len(chosen)
        more = [place for place in places if place not in chosen][: max(missing, 0)]
        if len(more) < missing:
            return None
        chosen += more
    return chosen
