"""Every key takes effect when a run goes on, or is refused there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Configure, trained_rows

from shoal import build, train
from shoal.build import build_run
from shoal.config.keys import Key, all_keys, set_value, value_of
from shoal.config.resume import FIXED, refuse_changes
from shoal.errors import ConfigError, ShoalError
from shoal.learners.local import LocalLearner
from shoal.learners.saved import read_learner
from shoal.run_folder import open_run, save_config
from shoal.training.state import Run

OTHER: dict[str, Any] = {
    "model.train": "lora",
    "model.tokenizer": "MODEL",
    "model.chat_template": "chatml",
    "optimizer.betas": [0.5, 0.6],
    "source.kind": "replay",
}
"""Another value of a key, where it cannot be made from its type."""


def other_value(key: Key, now: Any) -> Any:
    if key.name in OTHER:
        return OTHER[key.name]
    if key.choices:
        return next(choice for choice in key.choices if choice != now)
    if key.type is bool:
        return not now
    if key.type in (int, float):
        return key.type((now or 0) + 1)
    if getattr(key.type, "__origin__", None) is list:
        return [*now, "other"] if key.name != "model.lora.layers" else [0]
    if getattr(key.type, "__origin__", None) is dict:
        return {**now, "other": 1}
    return "other"


def plain(state: Any) -> Any:
    """A checkpoint's state without tensors and times, to compare."""
    if isinstance(state, torch.Tensor):
        return (tuple(state.shape), str(state.dtype), float(state.double().sum()))
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items() if key not in ("seconds", "run_id")}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state


def state_of(run: Run, folder: Path) -> dict[str, Any]:
    """All that a checkpoint holds: the run's own state, and what the learner writes."""
    folder.mkdir(exist_ok=True)
    run.parts.learner.save(folder)
    return {**run.state_dict(), "learner": read_learner(folder)}


def test_another_value_of_a_key_that_cannot_change_is_refused_with_the_reason(configure: Configure, tmp_path: Path):
    now = configure("run.steps=2")
    save_config(now, [], tmp_path)
    for name, why in FIXED.items():
        before = value_of(now, name)
        changed = configure("run.steps=2")
        set_value(changed, name, other_value(all_keys()[name], before))
        with pytest.raises(ConfigError, match=rf"^{name}=.*cannot change on resume") as refused:
            refuse_changes(now, changed, tmp_path)
        assert why in str(refused.value)
    (tmp_path / "checkpoints" / "step_2").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"model\.lora\.alpha=64\.0"):
        open_run(str(tmp_path), ["model.lora.alpha=64"])
    assert open_run(str(tmp_path), ["model.lora.alpha=32", "optimizer.lr=1e-5"])[0].optimizer.lr == 1e-5


@pytest.mark.parametrize("optimizers", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_other_key_takes_effect_because_the_checkpoint_holds_none_of_its_values(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizers: bool
):
    """What a run's parts are made of is the configuration of now. Only what the checkpoint gives back could undo it."""

    def opened(name: str, value: Any = None) -> Run:
        cfg = configure("run.steps=2")
        if value is not None:
            set_value(cfg, name, value)
        with monkeypatch.context() as patch:
            if not name.startswith(("first", "model.", "runtime.", "data.")):  # loaded once, and never trained
                patch.setattr(build, "open_policy", lambda *_: first.parts.policy)
                patch.setattr(build, "environment_task", lambda *_, **__: first.parts.task)
            return build_run(cfg, tmp_path / name, lambda: False, {})

    first = opened("first")
    first.close("finished")
    checkpoint, other = tmp_path / "checkpoint", tmp_path / "other"
    saved = state_of(first, checkpoint)
    without_a_place = plain(saved)
    for key in all_keys().values():
        if key.node or key.name == "resume" or key.name in FIXED or len(key.choices) == 1:
            continue
        if key.name.startswith("optimizer.") != optimizers:
            continue
        try:
            run = opened(key.name, other_value(key, value_of(first.cfg, key.name)))
        except ShoalError:
            continue  # it was read, and its value does not exist
        run.close("finished")
        own = plain(state_of(run, other))
        if own == without_a_place:
            continue
        try:
            run.load_state_dict(saved, checkpoint)
        except ShoalError:
            continue  # refused, as other data is
        assert plain(state_of(run, other)) == own, (
            f"{key.name}: a resumed run takes the checkpoint's in place of its own"
        )


def test_a_run_that_goes_on_takes_new_rates_of_the_optimizer(configure: Configure, tmp_path: Path):
    old = ("run.steps=2", "optimizer.scheduler=linear", "optimizer.warmup_steps=0")
    new = ("run.steps=4", "optimizer.lr=1e-5", "optimizer.betas=[0.5,0.6]", "optimizer.weight_decay=0.5")
    train(configure(*old), tmp_path)
    cfg = configure(*old[1:], *new, "optimizer.eps=1e-3", resume=tmp_path)
    run = build_run(cfg, tmp_path, lambda: False, {})
    run.restore()
    learner = run.parts.learner
    assert isinstance(learner, LocalLearner)
    matrices, vectors = learner.optimizer.optimizer.param_groups
    assert (matrices["betas"], matrices["eps"], matrices["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.5)
    assert vectors["weight_decay"] == 0.0
    assert len(learner.optimizer.optimizer.state_dict()["state"]) == len(learner.optimizer.parameters)
    run.close("stopped")
    train(cfg, tmp_path)
    # The linear schedule is at its third of four steps, of the new rate.
    assert [row["train/lr"] for row in trained_rows(tmp_path)][2:] == pytest.approx([5e-6, 2.5e-6])
