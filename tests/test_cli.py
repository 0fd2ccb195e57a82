"""The command line, up to where training begins: what is passed on, printed, written and returned."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from shoal.cli.command import main
from shoal.config import ShoalConfig
from shoal.errors import DataError, TrainingError
from shoal.run_folder import load_saved


class Training(ModuleType):
    """Stands where shoal.api stands: notes what it is called with, and ends as it is told."""

    def __init__(self) -> None:
        super().__init__("shoal.api")
        self.calls: list[tuple[ShoalConfig, Path | None]] = []
        self.status = "finished"
        self.failure: dict[float, BaseException] = {}

    def train(self, config: ShoalConfig, folder: Path) -> dict[str, Any]:
        self.calls.append((config, folder))
        if config.optimizer.lr in self.failure:
            raise self.failure[config.optimizer.lr]
        summary = {
            "status": self.status,
            "accuracy_before": 0.25,
            "accuracy_after": 0.75,
            "reward_last": 0.5,
            "seconds_total": 3.0,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    def evaluate(self, config: ShoalConfig, folder: Path | None, save: str | None) -> dict[str, float]:
        self.calls.append((config, folder))
        return {"accuracy": 0.5, "length": 12}

    def check(self, config: ShoalConfig) -> list[Any]:
        self.calls.append((config, None))
        result = ModuleType("result")
        result.name, result.ok, result.detail = "rewards", self.status == "finished", "as they should be"
        return [result]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    stand_in = Training()
    monkeypatch.setitem(sys.modules, "shoal.api", stand_in)
    monkeypatch.chdir(tmp_path)
    return stand_in


def test_train_alone_runs_the_default_in_a_folder_that_holds_its_configuration(training: Training, tmp_path: Path):
    assert main(["train"]) == 0
    [(config, folder)] = training.calls
    assert config.model.name == "story"
    assert folder is not None and folder.parts[0] == "outputs" and len(folder.parts) == 3
    assert load_saved(tmp_path / folder) == config


def test_train_takes_a_preset_a_group_and_keys_around_its_options(training: Training):
    assert main(["train", "algorithm=dapo", "--config-name", "gsm8k", "optimizer.lr=2e-5", "run.name=mine"]) == 0
    [(config, folder)] = training.calls
    assert (config.data.task, config.algorithm.clip_high, config.optimizer.lr) == ("gsm8k", 0.28, 2e-5)
    assert folder == Path("outputs/mine")
    saved = OmegaConf.load("outputs/mine/.hydra/overrides.yaml")
    assert saved == ["algorithm=dapo", "optimizer.lr=2e-5", "run.name=mine"]


@pytest.mark.parametrize(
    "words",
    [
        ["run.stepz=3"],
        ["run.steps=abc"],
        ["algorithm=foo"],
        ["--config-name", "nope"],
        ["--config-dir", "nope"],
        ["sampling.temperature=0"],
        ["--multirun", "run.stepz=3,4"],
        ["--multirun", "optimizer.lr=1e-4,fast"],
        ["resume=latest"],
        ["resume=nowhere"],
        ["--multirun", "resume=latest"],
    ],
)
def test_bad_input_is_one_line_on_stderr_status_2_and_nothing_written(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
):
    assert main(["train", *words]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("shoal: error: ") and error.count("\n") == 1
    assert training.calls == [] and list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_named(training: Training, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--dryrun"])
    assert caught.value.code == 2
    assert "unknown option --dryrun" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--smoke-test", "0"], ["--smoke-test=many"]])
def test_a_smoke_test_of_no_steps_is_refused(training: Training, words: list[str]):
    with pytest.raises(SystemExit) as caught:
        main(["train", *words])
    assert caught.value.code == 2


def test_data_that_cannot_be_read_leaves_no_folder_behind(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    training.failure[3e-4] = DataError("row 3 has no answer")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "shoal: error: row 3 has no answer\n"
    assert list(tmp_path.iterdir()) == []


def test_taking_a_folder_away_spares_the_runs_beside_it(training: Training, tmp_path: Path):
    assert main(["train"]) == 0
    training.failure[1e-4] = DataError("row 3 has no answer")
    assert main(["train", "optimizer.lr=1e-4"]) == 2
    [(_, kept), _] = training.calls
    assert [path.parent for path in tmp_path.rglob("summary.json")] == [tmp_path / str(kept)]
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1


def test_a_run_that_fails_is_status_1_and_keeps_its_folder(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    training.failure[3e-4] = TrainingError("the loss is nan")
    assert main(["train", "run.name=mine"]) == 1
    assert capsys.readouterr().err == "shoal: error: the loss is nan\n"
    assert (tmp_path / "outputs" / "mine" / ".hydra" / "config.yaml").is_file()


def test_ctrl_c_is_status_130_whether_the_step_was_finished_or_not(training: Training):
    training.status = "stopped"
    assert main(["train", "run.name=one"]) == 130
    training.failure[3e-4] = KeyboardInterrupt()
    assert main(["train", "run.name=two"]) == 130


def test_resume_goes_on_in_the_runs_folder_with_its_own_configuration(training: Training):
    main(["train", "run.name=mine", "algorithm=dapo", "run.steps=10"])
    assert main(["train", "resume=outputs/mine", "run.steps=20"]) == 0
    config, folder = training.calls[-1]
    assert folder == Path("outputs/mine") and config.resume == "outputs/mine"
    assert (config.algorithm.clip_high, config.run.steps) == (0.28, 20)
    saved = load_saved(folder)
    assert (saved.run.steps, saved.resume) == (20, None)
    Path("outputs/mine/checkpoints/step_10").mkdir(parents=True)
    assert main(["train", "resume=latest"]) == 0
    assert training.calls[-1][1] == Path("outputs/mine") and training.calls[-1][0].run.steps == 20


def test_the_same_command_with_resume_goes_on_with_the_run(training: Training):
    main(["train", "--config-name", "gsm8k", "run.name=mine", "algorithm=dapo"])
    assert main(["train", "--config-name", "gsm8k", "run.name=mine", "algorithm=dapo", "resume=outputs/mine"]) == 0
    assert training.calls[-1][0].data.task == "gsm8k"
    assert main(["train", "--config-name", "story", "resume=outputs/mine"]) == 2


def test_a_smoke_test_shrinks_the_run_but_not_what_was_asked_for(training: Training):
    assert main(["train", "--smoke-test", "run.group_size=4"]) == 0
    assert main(["train", "run.seed=1", "--smoke-test", "3"]) == 0
    (first, _), (second, _) = training.calls
    assert (first.run.steps, first.run.group_size, first.run.prompts_per_step) == (2, 4, 2)
    assert (second.run.steps, second.run.group_size) == (3, 2)


def test_a_sweep_runs_every_combination_and_ends_with_a_table(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "--multirun", "optimizer.lr=1e-4,1e-5", "algorithm=grpo,cispo", "run.name=sweep"]) == 0
    assert [(c.optimizer.lr, c.algorithm.surrogate) for c, _ in training.calls] == [
        (1e-4, "clip"),
        (1e-4, "cispo"),
        (1e-5, "clip"),
        (1e-5, "cispo"),
    ]
    assert [folder for _, folder in training.calls] == [tmp_path / "multirun" / "sweep" / str(n) for n in range(4)]
    assert load_saved(tmp_path / "multirun" / "sweep" / "3") == training.calls[3][0]
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5
    heads = (
        "run",
        "accuracy before",
        "accuracy after",
        "reward last",
        "seconds total",
        "status",
        "overrides",
        "folder",
    )
    assert [table[0].find(head) for head in heads] == sorted(table[0].find(head) for head in heads)
    assert all(head in table[0] for head in heads)
    words = ["3", "0.250", "0.750", "0.500", "3.000", "finished", "optimizer.lr=1e-05", "algorithm=cispo"]
    assert table[4].split() == [*words, "multirun/sweep/3"]


def test_a_failing_run_does_not_end_the_sweep_but_stands_in_the_table_and_the_status(
    training: Training, capsys: pytest.CaptureFixture[str]
):
    training.failure[1e-4] = TrainingError("the loss is nan")
    assert main(["train", "--multirun", "optimizer.lr=1e-4,1e-5"]) == 1
    out, error = capsys.readouterr()
    assert len(training.calls) == 2
    failed, finished = out.splitlines()[1:]
    assert "failed" in failed and "finished" in finished
    assert error.count("\n") == 1 and "0: the loss is nan" in error


def test_a_run_of_a_sweep_that_breaks_unexpectedly_is_raised_after_the_others(
    training: Training, capsys: pytest.CaptureFixture[str]
):
    training.failure[1e-4] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["train", "--multirun", "optimizer.lr=1e-4,1e-5"])
    assert len(training.calls) == 2
    assert "failed" in capsys.readouterr().out


def test_a_sweep_does_not_write_into_an_older_one(training: Training, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--multirun", "run.seed=1,2", "run.name=sweep"]) == 0
    assert main(["train", "--multirun", "run.seed=3,4", "run.name=sweep"]) == 2
    assert "choose another run.name" in capsys.readouterr().err
    assert len(training.calls) == 2


def test_ctrl_c_ends_the_whole_sweep_with_the_table(training: Training, capsys: pytest.CaptureFixture[str]):
    training.status = "stopped"
    assert main(["train", "--multirun", "optimizer.lr=1e-4,1e-5"]) == 130
    assert len(training.calls) == 1
    assert "stopped" in capsys.readouterr().out


def test_a_sweep_shrinks_under_smoke_test_and_does_not_touch_what_it_sweeps(training: Training):
    assert main(["train", "--smoke-test", "--multirun", "run.group_size=3,4"]) == 0
    assert [(c.run.steps, c.run.group_size) for c, _ in training.calls] == [(2, 3), (2, 4)]


def test_eval_of_a_model_in_a_run_folder_uses_the_runs_configuration(
    training: Training, capsys: pytest.CaptureFixture[str]
):
    main(["train", "--config-name", "gsm8k", "run.name=mine"])
    assert main(["eval", "model=outputs/mine/model", "evaluation.prompts=9"]) == 0
    config, folder = training.calls[-1]
    assert folder is None
    assert (config.model.name, config.data.task, config.evaluation.prompts) == ("outputs/mine/model", "gsm8k", 9)
    assert capsys.readouterr().out == "accuracy: 0.5000\nlength: 12\n"


def test_eval_of_another_model_uses_the_preset(training: Training):
    assert main(["eval", "--config-name", "gsm8k", "model=Qwen/Qwen3-1.7B"]) == 0
    config, _ = training.calls[-1]
    assert (config.model.name, config.data.task) == ("Qwen/Qwen3-1.7B", "gsm8k")


def test_check_prints_each_result_and_fails_where_one_failed(training: Training, capsys: pytest.CaptureFixture[str]):
    assert main(["check"]) == 0
    training.status = "broken"
    assert main(["check"]) == 1
    assert capsys.readouterr().out == "ok      rewards: as they should be\nFAILED  rewards: as they should be\n"


def test_logging_stays_on_shoals_own_logger(training: Training, capsys: pytest.CaptureFixture[str]):
    root_handlers = list(logging.getLogger().handlers)
    main(["check", "--log-level", "warning"])
    logging.getLogger("shoal.somewhere").info("quiet")
    logging.getLogger("shoal.somewhere").warning("loud")
    logging.getLogger("elsewhere").warning("not ours")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("WARNING loud")
    assert logging.getLogger().handlers == root_handlers


def test_help_lists_presets_groups_and_options_without_importing_torch():
    code = (
        "import sys\nfrom shoal.cli.command import main\n"
        "try:\n    main(['train', '--help'])\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("--multirun", "--dry-run", "--smoke-test", "presets: code, debug_0.5b, gsm8k", "algorithm=cispo|dapo"):
        assert word in done.stdout


def test_the_command_is_installed_and_knows_its_version():
    done = subprocess.run([Path(sys.executable).with_name("shoal"), "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("shoal 0.")
