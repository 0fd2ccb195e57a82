"""Keys of `run`: its length, its place, its randomness."""

from __future__ import annotations

import pytest

from effects.made import always_one, metrics_of, sampled_ids
from effects.registry import effect
from shoal.api import train
from shoal.errors import TrainingError


@effect("run.name", "run.root")
def test_name_and_root_say_where_the_run_is_written(settings, tmp_path):
    train(settings())
    (unnamed,) = (tmp_path / "outputs").glob("*/*/metrics.jsonl")
    assert unnamed.parent.parent.name.count("-") == 2, "date and time"
    train(settings({"run.name": "mine"}))
    assert (tmp_path / "outputs" / "mine" / "metrics.jsonl").exists()
    train(settings({"run.name": "mine", "run.root": str(tmp_path / "elsewhere")}))
    assert (tmp_path / "elsewhere" / "mine" / "metrics.jsonl").exists()


@effect("run.seed")
def test_the_seed_decides_order_and_samples(settings, open_run):
    def first_step(seed: int) -> tuple[list[str], list[list[list[int]]]]:
        groups = open_run(settings({"run.seed": seed})).source.next_groups(1)
        return [group.id for group in groups], sampled_ids(groups)

    assert first_step(0) == first_step(0)
    orders, samples = zip(first_step(0), first_step(1), strict=True)
    assert orders[0] != orders[1]
    assert samples[0] != samples[1]


@effect("run.seed")
def test_the_seed_decides_the_adapters_first_weights(settings, open_run):
    def adapter(seed: int) -> float:
        run = open_run(settings({"run.seed": seed, "model.train": "lora"}))
        return sum(float(p.detach().sum()) for name, p in run.parts.policy.model.named_parameters() if "lora_A" in name)

    assert adapter(0) == adapter(0) != adapter(1)


@effect("run.steps")
def test_steps_is_the_number_of_training_steps(settings, trained):
    for steps in (0, 1, 3):
        folder = trained(settings({"run.steps": steps, "evaluation.at_start": True}))
        assert [row["step"] for row in metrics_of(folder) if "reward/mean" in row] == list(range(1, steps + 1))


@effect("run.episodes")
def test_episodes_count_completions_and_replace_steps(settings, trained):
    # 2 prompts x 2 completions a step: 13 completions are 3 whole steps.
    assert len(metrics_of(trained(settings()))) == 2
    assert len(metrics_of(trained(settings({"run.episodes": 13})))) == 3


@effect("run.prompts_per_step", "run.group_size")
def test_a_step_has_so_many_groups_of_so_many_completions(settings, open_run):
    def sizes(changes: dict[str, int]) -> list[int]:
        return [len(group.completions) for group in open_run(settings(changes)).source.next_groups(1)]

    assert sizes({}) == [2, 2]
    assert sizes({"run.prompts_per_step": 3}) == [2, 2, 2]
    assert sizes({"run.group_size": 4}) == [4, 4]


@effect("run.record_groups")
def test_recorded_groups_lie_in_the_run_folder(settings, trained):
    assert not (trained(settings()) / "groups").exists()
    folder = trained(settings({"run.record_groups": True}))
    assert sorted(file.name for file in (folder / "groups").iterdir()) == ["step_1.msgpack", "step_2.msgpack"]


@effect("run.preflight")
def test_the_start_up_check_stops_a_run_whose_reward_tells_nothing(settings, trained):
    turned_round = {"reward.verifiers": {"exact_answer": -1.0, "made": 0.0}}
    trained(settings(turned_round))
    with pytest.raises(TrainingError, match=r"start-up check: rewards: a right answer scores 0\.0, a wrong one 0\.0"):
        trained(settings({**turned_round, "run.preflight": True}))


@effect("run.made_up_advantages")
def test_made_up_advantages_train_on_equal_rewards(settings, trained):
    def norms(changes: dict[str, bool]) -> list[float]:
        return [row["train/grad_norm"] for row in metrics_of(trained(settings(changes), reward=always_one))]

    assert norms({}) == [0.0, 0.0]
    assert min(norms({"run.made_up_advantages": True})) > 0
