"""What is configured judges rows, beside the verifiers that they name, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal import Submission, verifier
from shoal.config import ShoalConfig
from shoal.errors import ConfigError, DataError
from shoal.rewards.base import REGISTRY
from shoal.rewards.scorer import Scorer
from shoal.tasks.dataset import build_task
from shoal.types import Completion, Group, Segment, StopReason

NAMED = {"prompt": "2+3?", "ground_truth": "5", "verifiers": ["gsm8k"]}
UNNAMED = {"prompt": "2+3?", "ground_truth": "5"}


@pytest.fixture
def judges_of(tokenizer: Any, write_rows: Any) -> Any:
    """The verifiers of each row; none stands for those of the configuration."""

    def build(rows: list[dict[str, Any]], own: tuple[str, ...] = (), **reward: Any) -> list[list[str]]:
        cfg = ShoalConfig()
        cfg.data.task, cfg.data.path = "messages", write_rows("rows.jsonl", rows)
        for name, value in reward.items():
            node, _, last = name.rpartition("__")
            setattr(cfg.reward.rubric if node else cfg.reward, last, value)
        return [prompt.verifiers for prompt in build_task(cfg, tokenizer, own).train]

    return build


def test_a_configured_verifier_that_no_row_names_judges_beside_those_that_rows_name(judges_of: Any) -> None:
    assert judges_of([NAMED, UNNAMED], verifiers={"exact_answer": 0.5}) == [["gsm8k", "exact_answer"], []]
    assert judges_of([NAMED, UNNAMED], own=("ones",)) == [["gsm8k", "ones"], []]


def test_weights_of_verifiers_that_rows_name_add_none_to_other_rows(judges_of: Any) -> None:
    other = {**NAMED, "verifiers": ["exact_answer"]}
    found = judges_of([NAMED, other], verifiers={"exact_answer": 0.5, "gsm8k": 2.0})
    assert found == [["gsm8k"], ["exact_answer"]]


@pytest.mark.parametrize("rubric", [{"rubric__general": "default"}, {"rubric__adaptive": True}])
def test_criteria_that_are_configured_are_judged_by_on_every_row(judges_of: Any, rubric: dict[str, Any]) -> None:
    assert judges_of([NAMED], **rubric) == [["gsm8k", "rubric"]]
    assert judges_of([NAMED, UNNAMED], verifiers={"gsm8k": 1.0}, **rubric) == [["gsm8k", "rubric"]] * 2
    assert judges_of([UNNAMED], verifiers={"rubric": 1.0}, **rubric) == [[]]  # the configuration's


def test_the_parts_add_up_by_their_weights(tokenizer: Any, write_rows: Any) -> None:
    cfg = ShoalConfig()
    cfg.data.task = "messages"
    cfg.data.path = write_rows("rows.jsonl", [{**NAMED, "ground_truth": {"gsm8k": "5"}}])
    cfg.reward.verifiers = {"ones": 0.5}
    seen: list[Submission] = []

    def ones(submission: Submission) -> float:
        seen.append(submission)
        return 1.0

    task = build_task(cfg, tokenizer, ["ones"])
    completion = Completion([Segment([1], [2], [0.0], [True])], StopReason.STOP, text="5")
    with Scorer(cfg.reward, task.verifiers, {"ones": ones}, None, {"gsm8k", "ones"}) as scorer:
        scorer.score([Group("p", [completion], task.train[0])])
    assert completion.reward_parts == {"gsm8k": 1.0, "ones": 1.0}
    assert completion.reward == 1.5
    assert [submission.ground_truth for submission in seen] == [{"gsm8k": "5"}]


def test_a_reward_that_could_judge_no_row_is_refused_with_what_to_write(judges_of: Any) -> None:
    cfg = ShoalConfig()
    cfg.reward.verifiers = {"gsm8k": 1.0}
    with pytest.raises(ConfigError, match=r"'ones' judges no row: .* add reward\.verifiers\.ones=1\.0"):
        Scorer(cfg.reward, {}, {"ones": lambda submission: 1.0})


def test_rows_may_name_a_registered_verifier_of_the_users_module(
    judges_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**NAMED, "verifiers": ["mine_by_name"]}, UNNAMED]
    with pytest.raises(DataError, match="no verifier is named 'mine_by_name'"):
        judges_of(rows, verifiers={"gsm8k": 1.0})
    (tmp_path / "registers_mine.py").write_text(
        "from shoal import verifier\n\n@verifier('mine_by_name', bounded=True)\ndef mine(submission):\n    return 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        # It is one verifier, whose weight stands under its import path: it judges once.
        assert judges_of(rows, verifiers={"registers_mine:mine": 2.0}) == [["mine_by_name"], []]
        cfg = ShoalConfig()
        cfg.reward.verifiers = {"registers_mine:mine": 2.0}
        with Scorer(cfg.reward, {}, named={"mine_by_name"}) as scorer:
            assert scorer.part_weights["mine_by_name"] == 2.0
    finally:
        REGISTRY.pop("mine_by_name", None)


def test_a_verifier_registered_in_the_process_is_known_in_rows(judges_of: Any) -> None:
    try:
        verifier("registered_here", bounded=True)(lambda submission: 1.0)
        assert judges_of([{**NAMED, "verifiers": ["registered_here"]}]) == [["registered_here"]]
    finally:
        REGISTRY.pop("registered_here", None)
