"""Where runs write, and which run `resume` means."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from shoal.config import load_config
from shoal.errors import ConfigError, DataError, StartRefused, TrainingError
from shoal.run_folder import (
    find_resume,
    gone_if_refused,
    load_saved,
    new_run_folder,
    open_run,
    run_folder_of,
    save_config,
)


def make_run(folder: Path, *steps: int, overrides: tuple[str, ...] = ()) -> Path:
    save_config(load_config("story", overrides), overrides, folder)
    for step in steps:
        (folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
    return folder


def test_a_run_without_a_name_gets_date_and_time(tmp_path: Path):
    config = load_config("story", [f"run.root={tmp_path}"])
    before = datetime.now().replace(microsecond=0)
    folder = new_run_folder(config)
    made = datetime.strptime(str(folder.relative_to(tmp_path)), "%Y-%m-%d/%H-%M-%S")
    assert before <= made <= datetime.now()


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 5, 4, 12, 0, 0)

    monkeypatch.setattr("shoal.run_folder.datetime", Noon)
    config = load_config("story", [f"run.root={tmp_path}"])
    names = []
    for _ in range(3):
        folder = new_run_folder(config)
        folder.mkdir(parents=True)
        names.append(folder.name)
    assert names == ["12-00-00", "12-00-00_2", "12-00-00_3"]


def test_a_name_that_is_taken_is_refused_with_the_way_to_go_on(tmp_path: Path):
    config = load_config("story", [f"run.root={tmp_path}", "run.name=mine"])
    assert new_run_folder(config) == tmp_path / "mine"
    (tmp_path / "mine" / "samples").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"mine exists: choose another run.name, or remove that folder"):
        new_run_folder(config)
    (tmp_path / "mine" / "checkpoints" / "step_3").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"choose another run.name, or go on with that run by resume="):
        new_run_folder(config)


def test_a_refused_start_takes_its_folder_away_and_no_other(tmp_path: Path):
    for error in (ConfigError, DataError, StartRefused):
        with pytest.raises(error), gone_if_refused(tmp_path / "root" / "day" / "run", tmp_path / "root"):
            (tmp_path / "root" / "day" / "run" / "logs").mkdir()
            raise error("refused")
        assert not (tmp_path / "root" / "day").exists()
    (tmp_path / "there" / "before").mkdir(parents=True)
    with pytest.raises(ConfigError), gone_if_refused(tmp_path / "there", tmp_path):
        raise ConfigError("refused")
    with pytest.raises(TrainingError), gone_if_refused(tmp_path / "began", tmp_path):
        raise TrainingError("it ran")
    assert (tmp_path / "there" / "before").exists() and (tmp_path / "began").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{a: [", b"a: 1", b"[1, 2]", b"- a: 1\n", b"just words"])
def test_damaged_overrides_are_one_line_that_names_the_file(tmp_path: Path, content: bytes):
    config = load_config("story", [])
    save_config(config, [], tmp_path, preset="story")
    (tmp_path / ".hydra" / "overrides.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"overrides\.yaml is damaged") as caught:
        open_run(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{a: [", b"[1, 2]", b"just words", b""])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, content: bytes):
    config = load_config("story", [])
    save_config(config, [], tmp_path, preset="story")
    (tmp_path / ".hydra" / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_run(str(tmp_path), ["run.steps=3"])
    assert "\n" not in str(caught.value)


def test_a_start_killed_before_its_configuration_was_written_leaves_the_name_free(tmp_path: Path):
    config = load_config("story", [f"run.root={tmp_path}", "run.name=mine"])
    (tmp_path / "mine" / ".hydra").mkdir(parents=True)
    (tmp_path / "mine" / ".hydra" / ".writing_1_config.yaml").write_text("half")
    assert new_run_folder(config) == tmp_path / "mine"
    (tmp_path / "mine" / "notes.txt").write_text("somebody's own")
    with pytest.raises(ConfigError, match=r"exists: choose another run\.name"):
        new_run_folder(config)


def test_a_saved_configuration_is_resolved_and_loads_back_equal(tmp_path: Path):
    config = load_config("gsm8k", ["algorithm=dapo", "reward.verifiers.gsm8k=0.5"])
    save_config(config, ["algorithm=dapo"], tmp_path)
    assert "${" not in (tmp_path / ".hydra" / "config.yaml").read_text()
    assert OmegaConf.load(tmp_path / ".hydra" / "overrides.yaml") == ["algorithm=dapo"]
    assert load_saved(tmp_path) == config


def test_overrides_change_a_saved_configuration_and_are_checked_like_any(tmp_path: Path):
    make_run(tmp_path)
    config = load_saved(tmp_path, ["run.steps=200", "evaluation.sampling.temperature=0"])
    assert (config.run.steps, config.evaluation.sampling) == (200, {"temperature": 0})
    with pytest.raises(ConfigError, match=r"^there is no key 'run.stepz'; the nearest is 'run.steps'"):
        load_saved(tmp_path, ["run.stepz=200"])
    with pytest.raises(ConfigError, match=r"^run.steps: 'abc' is not a whole number$"):
        load_saved(tmp_path, ["run.steps=abc"])


def test_the_group_that_a_run_was_started_with_may_be_named_again_but_not_exchanged(tmp_path: Path):
    make_run(tmp_path, overrides=("algorithm=dapo",))
    assert load_saved(tmp_path, ["algorithm=dapo"]).algorithm.clip_high == 0.28
    with pytest.raises(ConfigError, match=r"has its own algorithm; override single keys, such as algorithm.surrogate"):
        load_saved(tmp_path, ["algorithm=cispo"])


def test_resume_takes_a_run_folder_with_its_configuration_and_further_overrides(tmp_path: Path):
    run = make_run(tmp_path / "run", 5, 10)
    config, folder = open_run(str(run), ["run.steps=20"])
    assert (folder, config.resume, config.run.steps) == (run, str(run), 20)
    assert open_run("latest", [f"run.root={tmp_path}"])[1] == run


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed_by_name(tmp_path: Path):
    run = make_run(tmp_path / "run")
    assert find_resume(str(run), tmp_path) == run


def test_resume_refuses_what_is_no_run(tmp_path: Path):
    run = make_run(tmp_path / "run", 5)
    for where in (tmp_path / "nope", tmp_path, run / "checkpoints", tmp_path / "checkpoints" / "step_5"):
        with pytest.raises(ConfigError, match=r"^resume=.*: no run folder"):
            find_resume(str(where), tmp_path)


def test_resume_takes_a_checkpoint_of_a_run_and_names_those_that_there_are(tmp_path: Path):
    run = make_run(tmp_path / "run", 5, 10)
    step_5 = run / "checkpoints" / "step_5"
    config, folder = open_run(str(step_5), ["optimizer.lr=1e-5"])
    assert folder == run
    assert config.resume == str(step_5)
    assert config.optimizer.lr == 1e-5
    with pytest.raises(ConfigError, match=r"no checkpoint of step 7; there are those of steps 5, 10$"):
        open_run(str(step_5.with_name("step_7")))


def test_the_root_only_says_where_latest_looks(tmp_path: Path):
    run = make_run(tmp_path / "run", 5)
    config, folder = open_run("latest", [f"run.root={tmp_path}"])
    assert folder == run
    assert config.run.root == load_saved(run).run.root != str(tmp_path)
    with pytest.raises(ConfigError, match=r"^run\.root=.*cannot change on resume"):
        open_run(str(run), [f"run.root={tmp_path}"])


def test_a_run_without_a_checkpoint_starts_again_with_any_key(tmp_path: Path):
    run = make_run(tmp_path / "run")
    assert open_run(str(run), ["run.preflight=false", "run.seed=3"])[0].run.seed == 3


def test_latest_is_the_run_with_the_newest_checkpoint_at_any_depth(tmp_path: Path):
    old = make_run(tmp_path / "2026-01-01" / "10-00-00", 5)
    new = make_run(tmp_path / "named", 3)
    make_run(tmp_path / "2026-01-02" / "nothing-saved")
    os.utime(old / "checkpoints" / "step_5", (1000, 1000))
    assert find_resume("latest", tmp_path) == new
    os.utime(new / "checkpoints" / "step_3", (500, 500))
    assert find_resume("latest", tmp_path) == old


def test_latest_without_any_checkpoint_says_so(tmp_path: Path):
    with pytest.raises(ConfigError, match=f"^resume=latest: no run under {tmp_path} has a checkpoint"):
        find_resume("latest", tmp_path)


def test_a_model_in_a_run_folder_knows_its_run(tmp_path: Path):
    run = make_run(tmp_path / "run")
    assert run_folder_of(str(run / "model")) == run
    assert run_folder_of("Qwen/Qwen3-0.6B") is None


@pytest.mark.parametrize("text", ["use ${x} and \\${y}", "a\\\\${z}", "${", "costs $5 {x}", "${run.steps}"])
def test_a_text_that_holds_a_dollar_and_a_brace_comes_through_composing_saving_and_resuming(text: str, tmp_path: Path):
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # one backslash more, as Hydra's manual has it
    (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml({"defaults": ["story"], "data": {"instructions": escaped}}))
    config = load_config("mine", [], tmp_path)
    assert config.data.instructions == text
    save_config(config, [], tmp_path / "run")
    assert load_saved(tmp_path / "run").data.instructions == text


def test_one_backslash_is_enough_on_the_command_line():
    assert load_config("story", [r'data.instructions="use \${x}"']).data.instructions == "use ${x}"
