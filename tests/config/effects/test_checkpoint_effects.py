"""Keys of `checkpoint`."""

from __future__ import annotations

from transformers import AutoModelForCausalLM

from effects.registry import effect


@effect("checkpoint.every", "checkpoint.keep_last")
def test_checkpoints_are_written_every_so_many_steps_and_the_newest_kept(settings, trained):
    def steps(changes: dict[str, int]) -> list[int]:
        folder = trained(settings({"run.steps": 4, **changes}))
        return sorted(int(path.parent.name.removeprefix("step_")) for path in folder.glob("checkpoints/*/state.pt"))

    assert steps({}) == []
    assert steps({"checkpoint.every": 2}) == [2, 4]
    assert steps({"checkpoint.every": 1}) == [2, 3, 4]
    assert steps({"checkpoint.every": 1, "checkpoint.keep_last": 1}) == [4]


@effect("checkpoint.keep_best", "checkpoint.save_final")
def test_the_best_and_the_last_model_are_kept_where_asked(settings, trained):
    def models(changes: dict[str, bool]) -> set[str]:
        folder = trained(settings({"evaluation.at_end": True, **changes}))
        found = {path.parent.name for path in folder.glob("*/config.json")}
        for name in found:
            AutoModelForCausalLM.from_pretrained(folder / name)
        return found

    assert models({}) == set()
    assert models({"checkpoint.keep_best": True}) == {"best"}
    assert models({"checkpoint.save_final": True}) == {"model"}
