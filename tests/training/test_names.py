"""What a configuration names is looked up before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import Configure

from shoal import build
from shoal.build import build_parts, build_run
from shoal.cli.dry_run import plan_lines
from shoal.config import ShoalConfig
from shoal.errors import ConfigError, DataError, ShoalError
from shoal.rollout.open import environment_kind
from shoal.rollout.tool_calls import find_tool

MODULE = """
from shoal.rollout.single_turn import SingleTurnEnvironment

class Mine(SingleTurnEnvironment):
    pass

def add(a: int, b: int) -> int:
    "Adds."
    return a + b

not_a_function = 3
"""


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load(*arguments: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(build, "open_policy", load)
    monkeypatch.setattr("shoal.cli.dry_run.estimate", load)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file whose second line is no JSON."""
    file = tmp_path / "broken.jsonl"
    file.write_text('{"question": "?", "answer": "#### 1"}\n{ no\n')
    return file


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["reward.verifiers={no_such_module:f:1}"], "no_such_module cannot be imported"),
        (["reward.verifiers={gsm9k:1}"], "no verifier is named 'gsm9k'"),
        (["data.verifiers=[gsm9k]"], "no verifier is named 'gsm9k'"),
        (["reward.options={gsm8k:{kompat:true}}"], "has no such option"),
        (["environment.tools=[no_such_module:f]"], "no_such_module cannot be imported"),
        (["environment.tools=[calculater]"], "there is no tool 'calculater'"),
        (["source.launch=no_such_module:Environment"], "no_such_module cannot be imported"),
        (["reward.rubric.general=no_such_file.yaml"], "no_such_file.yaml"),
        (["reward.verifiers={judge:1}", "reward.judge.template_file=no_such.jinja"], "no_such.jinja"),
        (["data.system_prompt=no_such_file.txt"], "no_such_file.txt"),
        (["data.task=gsm8k", "data.path=no_such_file.jsonl"], "no_such_file.jsonl: no such file"),
        (["data.task=gsm8k", "data.path=./no_such_folder"], "no_such_folder: no such file"),
        (["data.task=gsm8k", "data.path=no_such_file.parquet"], "no_such_file.parquet: no such file"),
        (["data.task=gsm8k", "data.path=BROKEN"], "line 2: cannot be read as JSON"),
        (["model.chat_template=no_such_template"], "no_such_template"),
    ],
)
def test_a_wrong_name_is_said_before_a_model_is_loaded_and_by_the_dry_run(
    configure: Configure, no_model: None, broken: Path, overrides: list[str], line: str
) -> None:
    cfg: ShoalConfig = configure("source=rollout_api" if "source.launch" in overrides[0] else "run.seed=0")
    for override in overrides:
        key, _, value = override.replace("BROKEN", str(broken)).partition("=")
        node, _, last = key.rpartition(".")
        target: Any = cfg
        for part in node.split("."):
            target = getattr(target, part)
        setattr(target, last, parsed(value))
    for start in (lambda: build_parts(cfg, {}), lambda: list(plan_lines(cfg))):
        with pytest.raises(ShoalError) as caught:
            start()
        assert line in str(caught.value) and "\n" not in str(caught.value)
        assert isinstance(caught.value, ConfigError | DataError)


@pytest.mark.parametrize(
    ("task", "row", "line"),
    [
        ("gsm8k", {"question": "?"}, "row 1: no value for answer"),
        ("gsm8k", {"question": "?", "answer": "no mark"}, "line 2, row 1: "),
        ("messages", {"messages": [{"role": "nobody"}], "ground_truth": "1", "verifiers": ["gsm8k"]}, "row 1: "),
        ("messages", {"messages": "?", "ground_truth": "1", "verifiers": ["gsm9k"]}, "no verifier is named 'gsm9k'"),
        ("rlvr", {"messages": [{"role": "user", "content": "?"}], "ground_truth": "[]", "dataset": "ifeval"}, "/1"),
    ],
)
def test_a_bad_row_of_a_readable_file_is_said_before_a_model_is_loaded(
    configure: Configure, no_model: None, tmp_path: Path, task: str, row: dict[str, Any], line: str
) -> None:
    good = {
        "gsm8k": {"question": "?", "answer": "#### 1"},
        "messages": {"messages": "?", "ground_truth": "1", "verifiers": ["gsm8k"]},
        "rlvr": {"messages": [{"role": "user", "content": "?"}], "ground_truth": "1", "dataset": "gsm8k"},
    }
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (good[task], row)))
    cfg = configure(f"data.task={task}", f"data.path={file}", "evaluation.every=0")
    with pytest.raises(DataError) as caught:
        build_parts(cfg, {})
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_beyond_the_models_ids_is_said_before_the_model_is_loaded(
    configure: Configure, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = build.model_info
    monkeypatch.setattr(build, "model_info", lambda cfg: replace(read(cfg), vocabulary=2))
    with pytest.raises(ConfigError, match=r"is beyond the model's 2 ids"):
        build_parts(configure(), {})


def parsed(value: str) -> Any:
    """A value of these overrides, as Hydra reads it."""
    names = {"gsm9k:1": {"gsm9k": 1.0}, "no_such_module:f:1": {"no_such_module:f": 1.0}, "judge:1": {"judge": 1.0}}
    if value.startswith("{"):
        return names.get(value[1:-1], {"gsm8k": {"kompat": True}})
    return value[1:-1].split(",") if value.startswith("[") else value


def test_modules_of_the_working_folder_hold_environments_and_tools(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    assert find_tool("module_of_mine:add").schema["function"]["description"] == "Adds."
    assert environment_kind(configure("environment.kind=module_of_mine:Mine")).__name__ == "Mine"
    with pytest.raises(ConfigError, match="module_of_mine has no 'ad'; the nearest is 'add'"):
        find_tool("module_of_mine:ad")
    with pytest.raises(ConfigError, match="int is no function"):
        find_tool("module_of_mine:not_a_function")
    with pytest.raises(ConfigError, match="no subclass of"):
        environment_kind(configure("environment.kind=module_of_mine:add"))
    (tmp_path / "broken_of_mine.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken_of_mine cannot be imported \(division by zero\)"):
        find_tool("broken_of_mine:add")


def test_an_environment_that_is_not_there_is_named(configure: Configure, no_model: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"environment\.kind 'no_module:Class': no_module cannot be imported"):
        build_run(configure("environment.kind=no_module:Class"), tmp_path, lambda: False, {})
    with pytest.raises(ConfigError, match=r"environment\.kind=nothing: there is no such environment"):
        build_run(configure("environment.kind=nothing"), tmp_path, lambda: False, {})
