"""README.md and docs/: the files, keys, classes and options that they name exist."""

from __future__ import annotations

import re
from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

import pytest

from shoal.cli.command import _parser
from shoal.config.keys import all_keys, holder_of

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"(?:[\w.-]+/)*[\w-]+\.(?:py|sh|yaml|md)|(?:[\w-]+/)+")
# Columns of docs/coming-from.md name what other trainers have; tests/test_coming_from.py reads that page.
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.stem != "coming-from")]
# Folders and files of a run, and of other programs.
OF_RUNS = {"checkpoints/", "journal/", "logs/", "model/", "best/", "samples/", "groups/", "memory_profile/"}
OF_RUNS |= {"unusable_groups/", "evaluations/", "memory_summary.md", "tensorboard/", "my_module.py"}
CLASS = re.compile(r"(?:[A-Z][a-z]+){2,}")
KEY = re.compile(r"(?<![\w.`/:-])((?:[a-z_]+\.)+[a-z_0-9]+)(?==|`)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def quoted(page: Path) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text_of(page))


def files() -> set[str]:
    """Every file and folder of the project, by its whole path and by each end of it."""
    found = set()
    for top in ("shoal", "docs", "tests", "benchmarks", "slurm", "scripts"):
        for path in (ROOT / top).rglob("*"):
            parts = path.relative_to(ROOT).parts
            end = "/" if path.is_dir() else ""
            found |= {"/".join(parts[index:]) + end for index in range(len(parts))}
        found.add(top + "/")
    return found | {path.name for path in ROOT.iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page))
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    named = {words for words in quoted(page) if FILE.fullmatch(words)} - OF_RUNS
    assert named - files() == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_exist(page: Path):
    keys = all_keys()
    roots = {name.partition(".")[0] for name in keys}
    named = {name for name in KEY.findall(text_of(page)) if name.partition(".")[0] in roots}
    assert {
        name for name in named if name not in keys and holder_of(name) is None and not FILE.fullmatch(name)
    } == set()


def test_classes_that_are_named_exist():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "shoal").rglob("*.py"))
    known = set(re.findall(r"^class (\w+)", code, flags=re.MULTILINE))
    page = ROOT / "docs" / "architecture.md"
    named = {word for words in quoted(page) for word in CLASS.findall(words)}
    assert len(named) >= 5
    assert named - known == set()


def options_of(parser: ArgumentParser, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """The options of every verb and sub-verb by its words."""
    found = {words: {name for action in parser._actions for name in action.option_strings}}
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for name, below in action.choices.items():
                found |= options_of(below, (*words, name))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_verbs_and_options_that_are_shown(page: Path):
    verbs = options_of(_parser())
    joined = text_of(page).replace("\\\n", " ")
    for line in re.findall(r"(?:^ +|`)shoal ([a-z][^`\n#]*)", joined, flags=re.MULTILINE):
        for command in re.split(r"&& (?:shoal )?", re.sub(r"[|>].*?(?=&&|$)", "", line)):
            words = re.sub(r'"[^"]*"', "", command).partition(" -- ")[0].split()
            verb = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in verbs), None)
            assert verb is not None, line
            shown = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert shown <= verbs[verb], line


def test_the_page_on_the_architecture_names_every_folder():
    folders = {f"{path.name}/" for path in (ROOT / "shoal").iterdir() if (path / "__init__.py").exists()}
    assert folders - set(quoted(ROOT / "docs" / "architecture.md")) == set()
