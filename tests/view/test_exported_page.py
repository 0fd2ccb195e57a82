"""The page in one file: what is in it, and what it may do."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from view.run_folders import group, write_samples

from shoal.cli import main
from shoal.view.export import EXPORT, IMPORT, answers, bundle, key_of, telling_groups
from shoal.view.runs import Runs

MODULES = sorted(path.name for path in (files("shoal.view") / "static").iterdir() if path.name.endswith(".js"))
OURS = [name for name in MODULES if "uPlot" not in name]


@pytest.fixture
def exported(run_dir: Path, tmp_path: Path) -> str:
    assert main(["view", str(run_dir), "--export", str(tmp_path / "out.html"), "--groups", "4"]) == 0
    return (tmp_path / "out.html").read_text(encoding="utf-8")


def kept(page: str) -> dict[str, object]:
    """What the file holds of the run."""
    found = re.search(r'<script type="application/json" id="kept">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_file_holds_all_numbers_and_the_chosen_groups_and_nothing_from_elsewhere(exported, run_dir):
    held = kept(exported)
    assert held[key_of("metrics", {"run": "run"})]["series"]["reward/mean"] == [[1, 2], [0.25, 0.5]]
    groups = [name for name in held if name.startswith("group&")]
    assert len(groups) == 4
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", exported)
    assert "default-src &#x27;none&#x27;" in exported and "unsafe" not in exported.split("</head>")[0]


def test_texts_of_a_run_cannot_end_the_data_and_begin_a_script(run_dir, tmp_path, exported):
    write_samples(run_dir, 3, group("</script><script>alert(1)</script>", [1.0, 0.0], text="<!--<script>"))
    assert main(["view", str(run_dir), "--export", str(tmp_path / "out.html")]) == 0
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<script") == exported.count("<script") and page.count("</script") == exported.count("</script")
    held = kept(page)
    named = [one["name"] for key, one in held.items() if key.startswith("group&")]
    assert "</script><script>alert(1)</script>" in named


def test_the_most_telling_groups_are_the_mixed_then_the_odd_then_a_spread(run_dir):
    run = Runs([run_dir]).all()[0]
    run.index.update(60)
    chosen = telling_groups(run, "samples", 4)
    assert (2, 0) in chosen and (1, 0) in chosen, "the mixed ones"
    assert (2, 3) in chosen, "one whose rewards are missing"
    assert len(chosen) == 4
    assert len(telling_groups(run, "samples", 100)) == 8, "all that there are"


def test_groups_that_are_named_are_in_the_file_and_one_that_is_not_there_is_refused(run_dir, tmp_path):
    words = ["view", str(run_dir), "--export", str(tmp_path / "out.html"), "--groups", "0"]
    assert main([*words, "--group", "2/1", "--group", "1/3"]) == 0
    held = kept((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert [name for name in held if name.startswith("group&")] == [
        key_of("group", {"run": "run", "step": "1", "group": "3"}),
        key_of("group", {"run": "run", "step": "2", "group": "1"}),
    ]
    assert main([*words, "--group", "9/9"]) == 2


def test_every_module_is_written_as_the_exporter_reads_it():
    for name in OURS:
        text = (files("shoal.view") / "static" / name).read_text(encoding="utf-8")
        said = re.findall(r"^(?:import|export)\b", text, re.MULTILINE)
        assert len(said) == len(IMPORT.findall(text)) + len(EXPORT.findall(text)), f"{name}: another form of import"
    script = bundle("main")
    for name in OURS:
        assert f"const m_{name.removesuffix('.js')} = " in script, f"nobody imports {name}"
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)


def test_runs_of_a_folder_go_into_one_file_with_their_comparison(run_dir, tmp_path):
    held = answers(Runs([run_dir.parent]), 2)
    assert [one["name"] for one in held["runs"]["runs"]] == ["run"]
    assert main(["view", str(tmp_path / "nothing"), "--export", str(tmp_path / "x.html")]) == 2
