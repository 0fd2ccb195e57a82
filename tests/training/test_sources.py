"""Where groups come from: rolled out now, with refilling, or replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import easy_rewards
import pytest
from small_runs import Configure, trained_rows, weights

from shoal import Submission, train
from shoal.build import build_parts, limit_notes
from shoal.config import ShoalConfig
from shoal.engines.base import SamplingParams
from shoal.errors import TrainingError
from shoal.monitor.monitor import Monitor
from shoal.training.recording import GroupRecording
from shoal.training.sources import ReplaySource, SyncSource, sampling_params
from shoal.types import Completion, Group, Segment, StopReason

Open = Callable[..., SyncSource]


@pytest.fixture
def open_source(tmp_path: Path) -> Iterator[Open]:
    """A source of a configuration, ready to roll out."""
    opened: list[SyncSource] = []

    def make(cfg: ShoalConfig, **rewards: Callable[[Submission], float]) -> SyncSource:
        parts = build_parts(cfg, rewards)
        parts.sync.publish(0).wait()
        opened.append(SyncSource(cfg, parts, Monitor(cfg, tmp_path / str(len(opened)), total_steps=5)))
        return opened[-1]

    yield make
    for source in opened:
        source.monitor.close("finished")
        source.parts.close()


def drawn(groups: list[Group]) -> list[tuple[str, int]]:
    return [(group.id, group.epoch) for group in groups]


def test_sampling_is_the_configurations_with_overrides(configure: Configure):
    cfg = configure("sampling.temperature=0.5", "sampling.stop=[x]")
    assert sampling_params(cfg) == SamplingParams(12, temperature=0.5, stop=("x",))
    assert sampling_params(cfg, {"temperature": 0, "max_new_tokens": 3}) == SamplingParams(3, 0, stop=("x",))


def test_each_step_takes_the_next_prompts_and_an_epoch_ends_in_the_middle_of_one(
    configure: Configure, open_source: Open
):
    source = open_source(configure("data.shuffle=false"))
    steps = [drawn(source.next_groups(step)) for step in range(1, 6)]
    assert steps[0] == [("story/train/0", 0), ("story/train/1", 0)]
    assert steps[4] == [("story/train/8", 0), ("story/train/0", 1)]  # of nine prompts
    assert source.metrics()["groups/sampled"] == source.metrics()["groups/used"] == 2


def test_a_loaded_position_gives_the_groups_that_would_have_come(configure: Configure, open_source: Open):
    cfg = configure("run.prompts_per_step=4")
    whole = open_source(cfg)
    whole.next_groups(1)
    state = whole.state_dict()
    expected = [whole.next_groups(step) for step in (2, 3)]
    resumed = open_source(cfg)
    resumed.load_state_dict(state)
    assert [resumed.next_groups(step) for step in (2, 3)] == expected


def first_member_only() -> Callable[[Submission], float]:
    """Every second group of four has rewards that differ."""
    calls = iter(range(10_000))
    return lambda submission: float(next(calls) % 8 == 0)


def test_refilling_replaces_groups_of_equal_rewards(configure: Configure, open_source: Open):
    cfg = configure("algorithm.zero_variance=refill", "reward.verifiers={own:1}", "data.shuffle=false")
    source = open_source(cfg, own=first_member_only())
    groups = source.next_groups(1)
    assert drawn(groups) == [("story/train/0", 0), ("story/train/2", 0)]
    assert not any(group.zero_variance for group in groups)
    assert (source.metrics()["groups/sampled"], source.metrics()["groups/used"]) == (3, 2)
    # The verifier's figures are those of both rounds: 12 completions, one right in each of two groups.
    assert source.metrics()["rewards/own/count"] == 12
    assert source.metrics()["rewards/own/right"] == pytest.approx(2 / 12)


def test_refilling_ends_after_the_rounds_that_are_allowed_and_says_so(
    configure: Configure, open_source: Open, capsys: pytest.CaptureFixture[str]
):
    cfg = configure("algorithm.zero_variance=refill", "algorithm.refill_rounds=3", "reward.verifiers={own:1}")
    source = open_source(cfg, own=lambda submission: 0.0)
    assert source.next_groups(1) == []
    assert source.metrics()["groups/sampled"] == 8
    said = "step 1: 0 of 2 groups have rewards that differ after 8 prompts"
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_step_without_any_signal_is_no_end_of_the_run(configure: Configure, tmp_path: Path):
    cfg = configure("algorithm.zero_variance=refill", "algorithm.refill_rounds=1", "run.steps=2")
    cfg.reward.verifiers = {}
    summary = train(cfg, tmp_path, rewards={"own": easy_rewards.always_zero})
    assert (summary["steps"], summary["status"]) == (2, "finished")
    rows = trained_rows(tmp_path)
    assert [row["groups/used"] for row in rows] == [row["trained/count/groups"] for row in rows] == [0, 0]
    assert [row["groups/all_wrong"] for row in rows] == [1, 1]


def test_refilling_does_not_hide_what_the_policy_has_learnt(configure: Configure, open_source: Open):
    """Of three groups of four completions, the second is solved whole and passed over."""
    cfg = configure("algorithm.zero_variance=refill", "reward.verifiers={own:1}", "data.shuffle=false")
    calls = iter(range(10_000))
    source = open_source(cfg, own=lambda submission: float(next(calls) not in (1, 2, 3, 9)))
    row = source.monitor.record(1, source.next_groups(1), source.metrics(), passed_over=source.passed_over)
    assert (row["groups/sampled"], row["groups/used"]) == (3, 2)
    assert row["reward/mean"] == pytest.approx(8 / 12) and row["trained/reward/mean"] == pytest.approx(4 / 8)
    assert row["groups/all_right"] == pytest.approx(1 / 3) and row["trained/groups/all_right"] == 0
    assert (row["count/completions"], row["trained/count/completions"]) == (12, 8)
    assert row["tokens_per_second/rollout"] == pytest.approx(row["count/sampled_tokens"] / row["seconds/rollout"])
    assert row["count/sampled_tokens"] > row["trained/count/sampled_tokens"]


def test_rows_of_a_run_that_replaces_nothing_have_no_metrics_of_trained_groups(configure: Configure, tmp_path: Path):
    train(configure("run.steps=1"), tmp_path)
    (row,) = trained_rows(tmp_path)
    assert "reward/mean" in row and not [name for name in row if name.startswith("trained/")]


def test_too_many_missing_rewards_stop_the_step(configure: Configure, open_source: Open):
    source = open_source(configure("reward.verifiers={own:1}"), own=easy_rewards.always_raises)
    with pytest.raises(TrainingError, match=r"8 of 8 rewards are missing.*the judge is out \(8 times\)") as caught:
        source.next_groups(1)
    assert "\n" not in str(caught.value)


LOSSES = ("loss/total", "loss/policy", "train/grad_norm", "policy/entropy", "reward/mean", "advantage/abs_mean")


def losses(folder: Path) -> list[dict[str, float]]:
    return [{name: row[name] for name in LOSSES if name in row} for row in trained_rows(folder)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture
def record(configure: Configure, recorded: Path) -> Path:
    """The folder of a run of four steps whose groups were recorded."""
    if not (recorded / "summary.json").exists():
        train(configure("run.steps=4", "run.record_groups=true"), recorded)
    return recorded


def replay(configure: Configure, record: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    return train(configure("run.steps=4", "source.kind=replay", f"source.path={record}", *overrides), folder)


def test_a_replay_with_the_same_algorithm_repeats_the_run(configure: Configure, record: Path, tmp_path: Path):
    replay(configure, record, tmp_path)
    assert losses(tmp_path) == losses(record)
    assert weights(tmp_path) == weights(record)


def test_a_replay_trains_with_another_algorithm(configure: Configure, record: Path, tmp_path: Path):
    overrides = ("algorithm.surrogate=cispo", "algorithm.clip_high=4", "algorithm.aggregation=token")
    replay(configure, record, tmp_path, *overrides, "algorithm.advantage=centered")
    found, before = losses(tmp_path), losses(record)
    assert [row["reward/mean"] for row in found] == [row["reward/mean"] for row in before]
    assert [row["train/grad_norm"] for row in found] != [row["train/grad_norm"] for row in before]
    assert weights(tmp_path) != weights(record)


def test_a_replay_does_not_pay_the_penalties_of_the_recorded_run(configure: Configure, record: Path, tmp_path: Path):
    penalised = ("algorithm.kl_coef=0.5", "algorithm.kl_in=reward", "algorithm.overlong.penalty=1")
    overrides = ("run.steps=4", "run.record_groups=true", "algorithm.overlong.buffer=6", *penalised)
    train(configure(*overrides, "optimizer.lr=0"), tmp_path / "recorded")
    first = GroupRecording(tmp_path / "recorded").read(1)
    assert first is not None and set(first[0].completions[0].penalties) == {"kl", "overlong"}
    assert first[0].completions[0].segments[0].ref_logprobs is not None
    replay(configure, tmp_path / "recorded", tmp_path / "replayed")
    assert losses(tmp_path / "replayed")[0] == losses(record)[0]


def test_a_replay_asks_no_verifier_and_no_sampler(
    configure: Configure, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("nothing is to be sampled")

    monkeypatch.setattr("shoal.rollout.rollouts.Rollouts.sample", refuse)
    replay(configure, record, tmp_path, "evaluation.at_start=false", "evaluation.every=0", "evaluation.at_end=false")


def test_a_replay_past_the_recording_says_how_long_it_is(configure: Configure, record: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match=r"no groups recorded for step 5; it has 4 steps, set run.steps to at most"):
        replay(configure, record, tmp_path, "run.steps=5")


def test_a_replayed_group_keeps_what_was_sampled_and_judged(tmp_path: Path):
    segment = Segment([1], [2, 3], [-0.5, -1.0], [True, True], [-0.4, -0.9], [1.0, 2.0])
    completion = Completion(
        [segment], StopReason.STOP, reward=0.5, reward_parts={"own": 0.5}, penalties={"kl": 0.1}, versions=[(0, 3)]
    )
    GroupRecording(tmp_path).write(1, [Group("g", [completion])])
    [group] = ReplaySource(GroupRecording(tmp_path)).next_groups(1)
    [found] = group.completions
    assert found.segments == [Segment([1], [2, 3], [-0.5, -1.0], [True, True], None, [1.0, 2.0])]
    assert (found.reward, found.reward_parts, found.penalties, found.versions) == (0.5, {"own": 0.5}, {}, [(0, 3)])


def test_a_token_limit_beyond_the_models_positions_is_said_at_the_start(configure: Configure, open_source: Open):
    source = open_source(configure())
    positions = source.parts.policy.max_positions
    assert limit_notes(source.cfg, source.parts) == []
    source.cfg.sampling.max_new_tokens = positions
    prompts = (*source.parts.task.train, *source.parts.task.evaluation)
    room = positions - max(len(prompt.token_ids) for prompt in prompts)
    [line] = limit_notes(source.cfg, source.parts)
    assert f"sampling.max_new_tokens={positions}" in line and f"leaves {room}," in line
