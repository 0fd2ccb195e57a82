import pytest
from verifier_table import MISSING, TABLE, Row

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.lookup import find_verifier
from shoal.rewards.scorer import Scorer
from shoal.types import Completion, Group, Prompt, Segment, StopReason

ROWS = [(name, row) for name, rows in TABLE.items() for row in rows]


def to_group(index: int, name: str, row: Row) -> Group:
    text, truth, _ = row
    count = len(text.split())
    segment = Segment([], [0] * count, [0.0] * count, [True] * count)
    prompt = Prompt(str(index), [], ground_truth=truth, verifiers=[name])
    return Group(str(index), [Completion([segment], StopReason.STOP, text=text)], prompt)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    """All rows, scored in one call: in-process verifiers, and two worker processes that take rows as they come."""
    made = [to_group(index, name, row) for index, (name, row) in enumerate(ROWS)]
    with Scorer(RewardConfig(workers=2, timeout=60), {}) as scorer:
        scorer.score(made)
    return made


def test_the_table_has_300_rows_and_every_verifier() -> None:
    assert len(ROWS) >= 300
    assert all(len({score for _, _, score in rows}) > 1 for rows in TABLE.values())


@pytest.mark.parametrize(("index", "name", "row"), [(index, *row) for index, row in enumerate(ROWS)])
def test_a_verifier_gives_the_score_of_the_table(groups: list[Group], index: int, name: str, row: Row) -> None:
    completion = groups[index].completions[0]
    wanted = row[2]
    if wanted is MISSING:
        assert completion.reward is None
        assert completion.info["missing"][name]
    else:
        assert completion.reward_parts[name] == pytest.approx(wanted)
        assert completion.reward == completion.reward_parts[name]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_verifier_of_the_table_is_found_by_its_name(name: str) -> None:
    assert find_verifier(name).name == name
