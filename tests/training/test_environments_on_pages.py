"""The environments that README.md and docs/coming-from.md show train as they stand on the page."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_runs import SMALL, trained_rows

from shoal import load_config, train

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "README.md": ("## Your own environment", 15),
    "docs/coming-from.md": ("### An environment of your own", 15),
}


def example(page: str) -> str:
    """The code block of the page's section on environments."""
    heading, _ = SECTIONS[page]
    section = (ROOT / page).read_text(encoding="utf-8").partition(heading + "\n")[2]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[0]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a page's code block to a module that can be imported, and gives the module's name."""

    def write(code: str) -> str:
        (tmp_path / "environment_on_a_page.py").write_text(code, encoding="utf-8")
        return "environment_on_a_page"

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    sys.modules.pop("environment_on_a_page", None)


@pytest.mark.parametrize("page", SECTIONS)
def test_the_environment_on_the_page_trains(
    page: str, module: Callable[[str], str], tiny_model: Path, few_problems: None, tmp_path: Path
) -> None:
    code = example(page)
    assert len(code.splitlines()) <= SECTIONS[page][1]
    [name] = re.findall(r"^class (\w+)", code, flags=re.MULTILINE)
    environment = f"environment={module(code)}:{name}"
    # Verifiers of the configuration judge where the class has no reward of its own.
    reward = [] if "def reward" in code else ["reward.verifiers={starts_with_a_digit: 1.0}"]
    cfg = load_config("story", [f"model.name={tiny_model}", *SMALL, "run.steps=2", environment, *reward])
    train(cfg, tmp_path / "run")
    steps = trained_rows(tmp_path / "run")
    assert len(steps) == 2
    part = "rewards/environment/mean" if "def reward" in code else "rewards/starts_with_a_digit/mean"
    assert all(part in row for row in steps)


def test_the_readme_names_its_environment_in_the_command() -> None:
    [name] = re.findall(r"^class (\w+)", example("README.md"), flags=re.MULTILINE)
    assert f"environment=my_module:{name}" in (ROOT / "README.md").read_text(encoding="utf-8")
