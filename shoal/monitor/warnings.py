"""What is going wrong in a run, said in words while it can still be mended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice

CUT_OFF = 0.5
"""Share of a step's completions that end at the token limit."""
SAME_STEPS = 10
AGAIN_AFTER = 50
"""Steps until a warning that still holds is repeated."""
GROWN, LEAST_MISMATCH = 5.0, 1e-3
MISMATCH_STEPS = 5


class Warnings:
    """Looks at the rows of the steps, in their order. A warning that holds on is repeated every 50 steps."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}
        self._rewards: deque[float] = deque(maxlen=SAME_STEPS)
        self._first_gaps: list[float] = []
        self._gaps: deque[float] = deque(maxlen=MISMATCH_STEPS)

    def sentences(self, step: int, row: Mapping[str, float]) -> list[str]:
        """One sentence for each thing to look at, from a step's metrics; seldom any."""
        found = dict(self._look(row))
        for name in set(self._said) - set(found):
            del self._said[name]
        due = {name: text for name, text in found.items() if step - self._said.get(name, -AGAIN_AFTER) >= AGAIN_AFTER}
        self._said |= dict.fromkeys(due, step)
        return list(due.values())

    def _look(self, row: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        cut = row.get("stop/length", 0.0)
        if cut >= CUT_OFF:
            yield (
                "cut off",
                f"{cut:.0%} of the completions were cut off at the token limit, before their answer may have come: "
                "raise sampling.max_new_tokens, or ask for shorter answers",
            )
        if "reward/mean" in row:
            self._rewards.append(row["reward/mean"])
        if len(self._rewards) == SAME_STEPS and len(set(self._rewards)) == 1:
            yield (
                "same reward",
                f"the mean reward has been {self._rewards[0]:.3f} for {SAME_STEPS} steps in a row: nothing is learnt "
                "from that; read samples/: the task may be too hard or too easy, or the verifier may not fit it",
            )
        gap = row.get("sampler/abs_difference")
        if gap is not None:
            self._gaps.append(gap)
            if len(self._first_gaps) < MISMATCH_STEPS:
                self._first_gaps.append(gap)
        if len(self._gaps) == MISMATCH_STEPS:
            first, now = (sum(islice(gaps, MISMATCH_STEPS)) / MISMATCH_STEPS for gaps in (self._first_gaps, self._gaps))
            if now > GROWN * max(first, LEAST_MISMATCH):
                yield (
                    "mismatch",
                    f"sampler and learner differ by {now:.2g} nats a token, {now / max(first, 1e-12):.1f} times as "
                    "much as at first: see sampler/* in the metrics; lower optimizer.lr or set algorithm.correction",
                )
