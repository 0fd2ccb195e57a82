import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.config.nodes.data import RewardConfig
from shoal.errors import ConfigError, TrainingError
from shoal.rewards.base import REGISTRY, Submission, verifier
from shoal.rewards.lookup import find_verifier, import_path
from shoal.rewards.scorer import Scorer
from shoal.rewards.workers.deadline import DeadlinePool
from shoal.types import Completion, Group, Prompt, Segment, StopReason


def group(*texts: str, truth: str = "10", verifiers: tuple[str, ...] = (), stop: StopReason = StopReason.STOP) -> Group:
    prompt = Prompt(id="p", token_ids=[1], ground_truth=truth, verifiers=list(verifiers))
    completions = [Completion([Segment([1], [2, 3], [0, 0], [True, True])], stop, text=text) for text in texts]
    return Group(id="p", completions=completions, prompt=prompt)


def test_the_tasks_own_verifiers_judge_unless_the_configuration_names_others() -> None:
    mine = group("<answer>10</answer>", "#### 10", "no")
    Scorer(RewardConfig(), {"exact_answer": 1.0}).score([mine])
    assert mine.rewards == [1.0, 0.0, 0.0]
    Scorer(RewardConfig(verifiers={"gsm8k": 2.0}), {"exact_answer": 1.0}).score([mine])
    assert mine.rewards == [2.0, 2.0, 0.0]
    assert mine.completions[0].reward_parts == {"gsm8k": 1.0}


def test_the_reward_is_the_weighted_sum_of_the_parts() -> None:
    mine = group("<answer>10</answer>", "the answer is 10")
    Scorer(RewardConfig(verifiers={"exact_answer": 0.25, "gsm8k": 1.5}), {}).score([mine])
    assert mine.rewards == [1.75, 1.5]
    assert mine.completions[1].reward_parts == {"exact_answer": 0.0, "gsm8k": 1.0}


def test_a_prompts_own_verifiers_replace_the_configured_ones_and_keep_a_configured_weight() -> None:
    both, other = group("#### 10", verifiers=("gsm8k",)), group("#### 10", verifiers=("gsm8k_open_instruct",))
    Scorer(RewardConfig(verifiers={"exact_answer": 1.0, "gsm8k": 3.0}), {}).score([both, other])
    assert both.rewards == [3.0]
    assert other.rewards == [1.0]
    assert set(other.completions[0].reward_parts) == {"gsm8k_open_instruct"}


def test_a_missing_part_makes_the_reward_missing_and_leaves_the_other_part_known() -> None:
    mine = group("fine", "hang", "crash", "raise", "nan", "fine")
    reward = RewardConfig(verifiers={"fragile_verifiers:misbehaving": 1.0, "gsm8k": 0.5}, timeout=2, workers=2)
    scorer = Scorer(reward, {})
    report = scorer.score([mine])
    scorer.close()
    assert mine.rewards == [1.0, None, None, None, None, 1.0]
    assert mine.completions[1].reward_parts == {"fragile_verifiers:misbehaving": None, "gsm8k": 0.0}
    metrics = report.metrics()
    assert metrics["rewards/missing"] == 4 / 6
    assert metrics["rewards/fragile_verifiers:misbehaving/count"] == 6
    assert metrics["rewards/fragile_verifiers:misbehaving/missing"] == 4
    assert metrics["rewards/fragile_verifiers:misbehaving/mean"] == 1.0  # over the two that are known
    assert metrics["rewards/gsm8k/missing"] == 0
    # The run stops, and the line says why; a hang alone is within the share that is allowed.
    with pytest.raises(TrainingError, match=r"4 of 6 rewards are missing.*no verdict within 2 s \(once\)"):
        report.check()


def test_answers_that_are_equal_as_they_stand_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    add = DeadlinePool.add
    monkeypatch.setattr(DeadlinePool, "add", lambda pool, job: asked.append(job) or add(pool, job))
    mine = group("so \\boxed{|3-x|}", "\\boxed{x-3}", "thus \\boxed{|3-x|}", "\\boxed{|x-3|}", truth="|x-3|")
    other = group("so \\boxed{|3-x|}", truth="|x-2|")
    with Scorer(RewardConfig(timeout=60), {"math": 1.0}) as scorer:
        scorer.score([mine, other])
    assert (mine.rewards, other.rewards) == ([1.0, 0.0, 1.0, 1.0], [0.0])
    assert len(asked) == 3


def test_a_hang_over_equal_answers_costs_one_deadline() -> None:
    name = "fragile_verifiers:misbehaving"
    mine = group("fine", "hang", "hang", "hang", "fine")
    with Scorer(RewardConfig(verifiers={name: 1.0}, timeout=2), {}) as scorer:
        scorer.entries[name] = replace(scorer.entries[name], key=lambda submission: submission.text)
        start = time.monotonic()
        report = scorer.score([mine])
        assert time.monotonic() - start < 60
    assert mine.rewards == [1.0, None, None, None, 1.0]
    assert report.missing == 3
    assert 2 <= report.verifiers[name].seconds < 4  # of the one that was waited for


def test_the_share_of_exactly_right_scores_does_not_count_partial_ones() -> None:
    reward = RewardConfig(verifiers={"fragile_verifiers:length": 1.0})
    scorer = Scorer(reward, {})
    metrics = scorer.score([group("", "x", "xx", "x")]).check().metrics()
    scorer.close()
    assert metrics["rewards/fragile_verifiers:length/right"] == 0.5
    assert metrics["rewards/fragile_verifiers:length/mean"] == 1.0
    assert metrics["rewards/fragile_verifiers:length/seconds"] > 0


@pytest.mark.parametrize("stop", [StopReason.ERROR, StopReason.ABORT])
def test_a_completion_that_the_engine_did_not_finish_gets_no_reward(stop: StopReason) -> None:
    failed, whole = group("<answer>10</answer>", stop=stop), group("<answer>10</answer>", stop=StopReason.LENGTH)
    report = Scorer(RewardConfig(), {"exact_answer": 1.0}).score([failed, whole])
    assert failed.rewards == [None]
    assert failed.completions[0].reward_parts == {}
    assert whole.rewards == [1.0]
    assert (report.missing, report.unfinished) == (1, 1)


@pytest.mark.parametrize(("allowed", "stops"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
def test_the_run_stops_above_the_allowed_share_of_missing_rewards(allowed: float, stops: bool) -> None:
    groups = [group("", stop=StopReason.ERROR), group("")]
    report = Scorer(RewardConfig(max_missing=allowed), {"exact_answer": 1.0}).score(groups)
    if stops:
        with pytest.raises(TrainingError, match=r"1 of 2 rewards are missing.*1 completions not finished"):
            report.check()
    else:
        assert report.check() is report


def test_missing_rewards_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Scorer(RewardConfig(), {"exact_answer": 1.0}).score([group("a", "b", stop=StopReason.ERROR)])
    assert "2 of 2 rewards missing" in caplog.text


def test_scoring_again_forgets_the_earlier_score() -> None:
    mine = group("<answer>10</answer>")
    scorer = Scorer(RewardConfig(), {"exact_answer": 1.0})
    scorer.score([mine])
    mine.completions[0].stop_reason = StopReason.ERROR
    scorer.score([mine])
    assert mine.rewards == [None]
    assert mine.completions[0].reward_parts == {}


def test_no_process_is_started_for_verifiers_that_cannot_hang() -> None:
    scorer = Scorer(RewardConfig(), {"exact_answer": 1.0, "gsm8k": 1.0})
    scorer.score([group("10")])
    assert scorer.pool is None


def test_a_row_may_name_a_verifier_by_import_path_that_the_workers_had_not_imported() -> None:
    scorer = Scorer(RewardConfig(verifiers={"fragile_verifiers:length": 1.0}), {})
    first, second = group("abc"), group("fine", verifiers=("fragile_verifiers:misbehaving",))
    scorer.score([first])
    scorer.score([second, first])
    scorer.close()
    assert (first.rewards, second.rewards) == ([3.0], [1.0])


def test_an_unknown_verifier_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'gsm8'; the nearest is 'gsm8k'"):
        Scorer(RewardConfig(verifiers={"gsm8": 1.0}), {})


def test_an_import_path_to_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="has no 'lenght'; the nearest is 'length'"):
        find_verifier("fragile_verifiers:lenght")
    with pytest.raises(ConfigError, match="no_such_module cannot be imported"):
        find_verifier("no_such_module:f")


def test_a_module_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_a_user.py").write_text("def half(submission):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    scorer = Scorer(RewardConfig(verifiers={"rewards_of_a_user:half": 1.0}), {})
    mine = group("")
    scorer.score([mine])
    scorer.close()
    assert mine.rewards == [0.5]


def test_functions_given_from_python_replace_the_tasks_verifiers_and_run_here() -> None:
    called_in = []

    def short(submission: Submission) -> float:
        called_in.append(os.getpid())
        return 1.0 if len(submission.text) < 3 else 0.0

    mine = group("ab", "abc")
    Scorer(RewardConfig(), {"exact_answer": 1.0}, {"short": short}).score([mine])
    assert mine.rewards == [1.0, 0.0]
    assert set(called_in) == {os.getpid()}
    Scorer(RewardConfig(verifiers={"short": 0.5, "gsm8k": 2.0}), {}, {"short": short}).score([mine])
    assert mine.rewards == [0.5, 0.0]
    assert mine.completions[0].reward_parts == {"short": 1.0, "gsm8k": 0.0}


def test_a_function_of_ones_own_that_raises_makes_the_reward_missing() -> None:
    mine = group("x")
    report = Scorer(RewardConfig(), {}, {"odd": lambda submission: 1 / 0}).score([mine])
    assert mine.rewards == [None]
    assert report.explanation() == "odd: ZeroDivisionError: division by zero (once)"


def test_two_verifiers_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="two verifiers are named 'gsm8k'"):
        verifier("gsm8k")(lambda submission: 0.0)


def test_a_verifier_that_a_worker_cannot_import_is_refused() -> None:
    def inner(submission: Submission) -> float:
        return 1.0

    verifier("defined inside a function")(inner)
    try:
        with pytest.raises(ConfigError, match="make it a function of a module"):
            import_path(REGISTRY["defined inside a function"])
    finally:
        del REGISTRY["defined inside a function"]
