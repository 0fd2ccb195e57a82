"""What the pages are told equals what the run folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from view.run_folders import group, row, write_lines, write_samples

from shoal.config import load_config
from shoal.run_folder import save_config
from shoal.view.groups import heat_map
from shoal.view.index import SampleIndex, index_path


def test_curves_are_the_rows_of_metrics_jsonl(run_dir, ask):
    told = ask(run_dir, "metrics", keys="reward/mean,eval/accuracy,absent")
    assert told["series"] == {"reward/mean": [[1, 2], [0.25, 0.5]], "eval/accuracy": [[0], [0.25]]}
    assert told["rows"] == 3


def test_later_rows_are_told_alone_and_a_cut_file_is_told_anew(run_dir, client):
    page = client(run_dir)

    def told(**given):
        return page.get("/api/metrics", params={"run": "run", "keys": "reward/mean", **given}).json()

    first = told()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/mean": 0.75}\n{"step": 4, "rewa')
    grown = told(after=first["rows"], generation=first["generation"])
    assert grown["series"] == {"reward/mean": [[3], [0.75]]}, "half a line waits for its other half"
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "other").write_text("".join(lines[:2]))
    (run_dir / "other").replace(run_dir / "metrics.jsonl")  # as a resume cuts it
    cut = told(after=grown["rows"], generation=grown["generation"])
    assert cut["generation"] != grown["generation"] and cut["series"] == {"reward/mean": [[1], [0.25]]}


def test_lines_that_are_no_rows_are_counted_and_break_nothing(run_dir, ask):
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"step": "five"}\nnot json\n[1]\n{"step": 3, "reward/mean": NaN}\n\xff\xfe\n' + b"[" * 9999 + b"\n"
        )
    told = ask(run_dir, "metrics", keys="reward/mean")
    assert told["series"]["reward/mean"] == [[1, 2, 3], [0.25, 0.5, None]]
    assert ask(run_dir, "overview")["broken"] == 5


def test_the_map_has_every_group_with_its_outcome_in_the_words_of_the_metrics(run_dir, ask):
    told = ask(run_dir, "steps")
    assert told["steps"] == [1, 2] and told["completions"] == 20 and told["waiting"] == 0
    # outcome, mean reward, right ones, completions, mean length, prompt id
    assert told["groups"][1] == [
        ["mix", 0.3333, 1, 4, 4.5, "mixed/2"],
        ["rig", 1.0, 2, 2, 3.5, "right"],
        ["wro", 0.0, 0, 2, 3.5, "wrong"],
        ["mis", None, 0, 2, 3.5, "missing"],
    ]


def test_a_group_has_its_rows_and_knows_its_neighbours_and_its_other_draws(run_dir, ask):
    told = ask(run_dir, "group", step=2, group=1)
    rows = [json.loads(line) for line in (run_dir / "samples" / "step_2.jsonl").read_text().splitlines()][4:6]
    shown = [{key: one[key] for key in rows[0]} for one in told["completions"]]
    assert shown == rows
    assert (told["before"], told["after"], told["step_before"], told["step_after"]) == ([2, 0], [2, 2], [1, 1], None)
    assert [(one["step"], one["rights"]) for one in told["again"]] == [(1, 2), (2, 2)]


def test_a_prompt_drawn_twice_in_a_row_makes_two_groups(tmp_path, ask):
    write_samples(tmp_path / "run", 1, [*group("a", [1.0, 0.0]), *group("a", [0.0, 0.0])])
    assert [cell[2] for cell in ask(tmp_path / "run", "steps")["groups"][0]] == [1, 0]


def test_why_a_group_was_left_out_is_said_in_words(tmp_path, ask):
    why = "its group has fewer than two known rewards"
    rows = [row("a", 0, 1.0, left_out=why), row("a", 1, None, left_out="its reward is missing")]
    write_samples(tmp_path / "run", 1, rows)
    words = ask(tmp_path / "run", "group", step=1, group=0)["words"]
    assert words.startswith("Only one reward of 2 is known. Left out of training")
    assert f"{why}; its reward is missing" in words


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"text": "IT IS 2"}, {(1, 0, 2), (2, 0, 2)}),
        ({"prompt": "mixed/1"}, {(1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3)}),
        ({"stop": "length", "last": 1}, {(1, 2, 0), (1, 2, 1)}),
        ({"outcome": "missing", "first": 2}, {(2, 3, 0), (2, 3, 1)}),
        ({"low": 0.5, "high": 1, "first": 2}, {(2, 0, 0), (2, 1, 0), (2, 1, 1)}),
        ({"source": "elsewhere"}, set()),
        ({"text": "what is mixed/2", "low": 1}, {(2, 0, 0)}),
        ({"text": "nothing like it"}, set()),
    ],
)
def test_search_finds_completions_by_text_id_reason_outcome_and_reward(run_dir, ask, query, expected):
    told = ask(run_dir, "find", **query)
    assert {(one["step"], one["group"], one["index"]) for one in told["rows"]} == expected
    assert told["total"] == len(expected) and told["left"] == 0


def test_what_was_found_comes_in_the_order_asked_for_and_by_pages(run_dir, ask):
    lengths = [one["length"] for one in ask(run_dir, "find", order="longest", count=3)["rows"]]
    assert lengths == [6, 6, 5]
    whole = ask(run_dir, "find", order="oldest")["rows"]
    pages = [ask(run_dir, "find", order="oldest", start=start, count=7)["rows"] for start in (0, 7, 14)]
    assert [one for some in pages for one in some] == whole


@pytest.mark.parametrize("text", ["Größe", "größe", "GRÖẞE", "日本", 'say "so"', "back\\slash", "a\nb", "/path/"])
def test_search_finds_letters_that_json_writes_otherwise(tmp_path, ask, text):
    rows = [row("a", 0, 1.0, text='Die Größe 5 日本 say "so" back\\slash a\nb /path/'), row("a", 1, 0.0)]
    write_samples(tmp_path / "run", 1, rows)
    escaped = tmp_path / "run" / "samples" / "step_2.jsonl"
    escaped.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert ask(tmp_path / "run", "find", text=text)["total"] == 2


def test_evaluations_tell_which_prompts_were_solved_lost_or_never_right(tmp_path, ask):
    rewards = {"solved": (0, 1), "lost": (1, 0), "always": (1, 1), "never": (0, 0)}
    for number, step in enumerate((0, 10)):
        rows = [one for name, both in rewards.items() for one in group(name, [float(both[number])])]
        write_samples(tmp_path / "run", step, rows, "evaluations")
    told = ask(tmp_path / "run", "evaluations")
    assert told["steps"] == [0, 10]
    assert {one["name"]: one["story"] for one in told["prompts"]} == {name: name for name in rewards}


def test_rubrics_tell_spread_and_what_was_added_and_given_up(tmp_path, ask):
    criterion = {"key": "k", "title": "Short", "description": "Is short.", "weight": 1.0, "origin": "adaptive"}
    log = {
        "step": 1,
        "prompt": "a",
        "question": "what is a?",
        "criteria": [{**criterion, "scores": [1.0, 0.0]}],
        "rewards": [1.0, 0.0],
        "added": [criterion],
        "to_inactive": ["k"],
    }
    folder = tmp_path / "run"
    write_lines(folder / "adaptive_rubrics.jsonl", [log])
    write_samples(folder, 1, group("a", [1.0, 0.0]))
    [step] = ask(folder, "rubrics")["prompts"][0]["steps"]
    assert (step["criteria"][0]["mean"], step["criteria"][0]["spread"]) == (0.5, 0.5)
    assert step["added"] == ["Short"] and step["dropped"] == ["k"]
    assert ask(folder, "group", step=1, group=0)["criteria"][0]["scores"] == [1.0, 0.0]


def test_runs_of_a_folder_are_listed_with_where_they_stand(tmp_path, client):
    for name in ("one", "two"):
        write_lines(tmp_path / "sweep" / name / "metrics.jsonl", [{"step": 1, "reward/mean": 0.5}])
    (tmp_path / "sweep" / "one" / "summary.json").write_text('{"status": "finished"}')
    told = client(tmp_path / "sweep").get("/api/runs").json()["runs"]
    assert {one["name"]: (one["status"], one["reward"]) for one in told} == {
        "one": ("finished", 0.5),
        "two": ("running", 0.5),
    }


def test_files_of_completions_in_a_folder_are_listed_and_other_files_are_not(tmp_path, client):
    write_lines(tmp_path / "saved" / "answers.jsonl", group("a", [1.0]))
    write_lines(tmp_path / "scored.jsonl", [{"completion": "4", "score": 1.0}])
    write_lines(tmp_path / "questions.jsonl", [{"prompt": "2 + 2?", "ground_truth": "4"}])
    (tmp_path / "broken.jsonl").write_text("{half")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "scored.jsonl")
    told = client(tmp_path).get("/api/runs").json()["runs"]
    assert {one["name"]: one["status"] for one in told} == {"saved/answers.jsonl": "file", "scored.jsonl": "file"}


def test_compared_runs_tell_the_keys_that_differ(tmp_path, client):
    for name, lr in (("one", 0.1), ("two", 0.2)):
        write_lines(tmp_path / name / "metrics.jsonl", [{"step": 1, "reward/mean": lr}])
        (tmp_path / name / ".hydra").mkdir()
        (tmp_path / name / ".hydra" / "config.yaml").write_text(f"optimizer: {{lr: {lr}, betas: [0, 1]}}\n")
    told = client(tmp_path).get("/api/compare", params={"runs": "one\ntwo"}).json()
    assert told["differing"] == [["optimizer.lr", 0.1, 0.2]]


def test_what_differs_from_the_preset_is_told(tmp_path, ask):
    folder = tmp_path / "run"
    save_config(load_config("story", ["optimizer.lr=0.5"]), ["optimizer.lr=0.5"], folder, preset="story")
    told = ask(folder, "configuration")["preset"]
    assert told["preset"] == "story" and [(key, mine) for key, mine, _ in told["rows"]] == [("optimizer.lr", 0.5)]


def test_rows_of_shoal_score_are_shown_as_completions(tmp_path, ask):
    rows = [
        {"completion": "4", "ground_truth": "4", "score": 1.0},
        {"completion": "x", "ground_truth": "4", "score": None, "reason": "no number"},
    ]
    file = write_lines(tmp_path / "scored.jsonl", rows)
    told = ask(file, "group", step=0, group=1)
    assert told["completions"][0]["text"] == "x" and told["completions"][0]["info"]["missing"] == {"score": "no number"}
    assert [cell[0] for cell in ask(file, "steps")["groups"][0]] == ["rig", "mis"]


def test_a_running_run_is_followed_and_what_a_resume_drops_goes(run_dir, client):
    page = client(run_dir)

    def steps():
        return page.get("/api/steps", params={"run": "run"}).json()["steps"]

    assert steps() == [1, 2]
    write_samples(run_dir, 3, group("new", [1.0, 0.0]))
    assert steps() == [1, 2, 3]
    (run_dir / "samples" / "step_2.jsonl").unlink()
    write_samples(run_dir, 1, group("other", [0.0]))
    assert steps() == [1, 3]
    told = page.get("/api/find", params={"run": "run", "order": "oldest"}).json()
    assert [(one["step"], one["name"]) for one in told["rows"]] == [(1, "other"), (3, "new"), (3, "new")]


def test_good_lines_are_indexed_without_their_texts_being_decoded(run_dir, monkeypatch):
    monkeypatch.setattr("shoal.view.scan.read_line", lambda raw: pytest.fail("decoded as a whole"))
    assert heat_map(indexed(run_dir), "samples")["completions"] == 20


def indexed(folder: Path) -> SampleIndex:
    index = SampleIndex(folder)
    index.update(60)
    return index


def test_the_index_is_kept_outside_the_run_folder_and_made_again_where_it_is_damaged(run_dir):
    before = sorted(run_dir.rglob("*"))
    indexed(run_dir).close()
    assert sorted(run_dir.rglob("*")) == before
    kept = SampleIndex(run_dir)
    assert len(kept.files) == 2
    kept.close()
    index_path(run_dir).write_bytes(b"no database at all" * 100)
    again = indexed(run_dir)
    assert heat_map(again, "samples")["completions"] == 20
    again.close()


def test_two_views_of_one_run_do_not_disturb_each_other(run_dir):
    first, second = indexed(run_dir), indexed(run_dir)
    write_samples(run_dir, 3, group("new", [1.0, 0.0]))
    for index in (first, second):
        index.update(60)
        assert heat_map(index, "samples")["steps"] == [1, 2, 3]
        index.close()
