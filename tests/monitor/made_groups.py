"""Groups made by hand for the tests of the monitor."""

from shoal.types import Completion, Group, Prompt, Segment, StopReason


def completion(
    reward: float | None,
    length: int = 2,
    *,
    parts: dict[str, float | None] | None = None,
    advantage: float | None = None,
    stop: StopReason = StopReason.STOP,
    version: int = 0,
    penalties: dict[str, float] | None = None,
) -> Completion:
    """A completion of `length` sampled tokens; without `parts` it has one part that equals the reward."""
    segment = Segment([1, 2], [5] * length, [-0.5] * length, [True] * length)
    return Completion(
        segments=[segment],
        stop_reason=stop,
        text="4" * length,
        versions=[(0, version)],
        reward=reward,
        reward_parts={"answer": reward} if parts is None else parts,
        advantage=advantage,
        penalties=penalties or {},
    )


def group(name: str, completions: list[Completion], source: str = "story") -> Group:
    return Group(id=name, completions=completions, prompt=Prompt(id=name, token_ids=[1, 2], source=source))


def step_groups(step: int) -> list[Group]:
    """Two groups whose numbers depend on the step only."""
    return [
        group("a", [completion(1.0, 2, advantage=1.0), completion(0.0, 2 + step, advantage=-1.0)]),
        group("b", [completion(float(step % 2), 3, advantage=0.0), completion(1.0, 4, advantage=0.0)]),
    ]
