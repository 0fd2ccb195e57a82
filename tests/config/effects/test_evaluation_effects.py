"""Keys of `evaluation`."""

from __future__ import annotations

from effects.made import metrics_of
from effects.registry import effect


@effect("evaluation.every", "evaluation.at_start", "evaluation.at_end")
def test_evaluations_take_place_when_they_are_asked_for(settings, trained):
    def steps(changes: dict[str, object]) -> list[int]:
        rows = metrics_of(trained(settings({"run.steps": 3, **changes})))
        return [row["step"] for row in rows if "eval/accuracy" in row]

    assert steps({}) == []
    assert steps({"evaluation.at_start": True}) == [0]
    assert steps({"evaluation.every": 2}) == [2]
    assert steps({"evaluation.at_end": True}) == [3]


@effect("evaluation.prompts", "evaluation.samples")
def test_an_evaluation_has_so_many_prompts_and_samples(settings, open_run):
    def evaluate(changes: dict[str, int]) -> tuple[int, int, set[str]]:
        metrics, groups = open_run(settings(changes)).evaluator.run()
        return len(groups), len(groups[0].completions), {name for name in metrics if name.startswith("pass@")}

    assert evaluate({}) == (3, 1, {"pass@1"})
    assert evaluate({"evaluation.prompts": 5}) == (5, 1, {"pass@1"})
    assert evaluate({"evaluation.prompts": 0}) == (8, 1, {"pass@1"}), "all of them"
    assert evaluate({"evaluation.samples": 4}) == (3, 4, {"pass@1", "pass@2", "pass@4"})


@effect("evaluation.sampling")
def test_evaluations_can_sample_in_another_way(settings, open_run):
    def evaluate(changes: dict[str, object]) -> tuple[float, int]:
        metrics, groups = open_run(settings({"evaluation.samples": 4, **changes})).evaluator.run()
        return metrics["length"], len({one.text for one in groups[0].completions})

    length, texts = evaluate({})
    assert length > 2 and texts > 1
    assert evaluate({"evaluation.sampling": {"max_new_tokens": 2}})[0] <= 2
    assert evaluate({"evaluation.sampling": {"top_k": 1}})[1] == 1
