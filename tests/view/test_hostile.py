"""What is in a run folder is only ever shown, and nothing beside it can be had."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from view.run_folders import group, row, write_lines, write_samples

from shoal.errors import DataError
from shoal.view.access import Visitors
from shoal.view.find import Query
from shoal.view.groups import read_group
from shoal.view.runs import Runs

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "markup": "<img src=x onerror=alert(1)>",
    "terminal": "\x1b[2J\x1b]0;title\x07",
    "nul": "a\x00b",
    "rtl": "\u202egnp.exe",
    "long": "x" * 2**20,
    "surrogate": "\ud800 alone",
}


def test_hostile_texts_arrive_letter_by_letter(tmp_path, ask):
    rows = [row("a", index, 1.0, text=text) for index, text in enumerate(HOSTILE.values())]
    path = tmp_path / "run" / "samples" / "step_1.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    told = ask(tmp_path / "run", "group", step=1, group=0)
    assert [one["text"] for one in told["completions"]] == list(HOSTILE.values())


def test_lines_of_any_bytes_are_skipped_or_read_as_far_as_they_can_be(tmp_path, ask):
    good = json.dumps(row("a", 0, 1.0)).encode()
    bad_bytes = json.dumps(row("a", 1, 0.0, text="TEXT")).encode().replace(b"TEXT", b"\xff\xfe caf\xe9")
    odd = json.dumps({"group": ["a"], "index": "first", "reward": "much", "reward_parts": 5, "text": 7}).encode()
    lines = [good, b"", b"\x00\x01", bad_bytes, b"[1, 2]", b"[" * 5000, odd, good[: len(good) // 2]]
    path = tmp_path / "run" / "samples" / "step_1.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\n".join(lines))
    told = ask(tmp_path / "run", "steps")
    assert told["completions"] == 3 and told["broken"] == 4
    assert ask(tmp_path / "run", "group", step=1, group=0)["completions"][1]["text"] == "\ufffd\ufffd caf\ufffd"
    ask(tmp_path / "run", "group", step=1, group=1)


def test_numbers_that_json_lacks_become_null(tmp_path, ask):
    path = tmp_path / "run" / "samples" / "step_1.jsonl"
    path.parent.mkdir(parents=True)
    text = json.dumps(row("a", 0, 1.0))
    path.write_text(
        text.replace('"reward": 1.0', '"reward": NaN')
        + "\n"
        + text.replace("1.0", "1e999").replace('"index": 0', '"index": 1')
        + "\n"
    )
    assert [one["reward"] for one in ask(tmp_path / "run", "group", step=1, group=0)["completions"]] == [None, None]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "run/../../x", "run\x00"])
def test_a_name_that_leads_out_of_the_folders_is_no_run(run_dir, client, name):
    page = client(run_dir)
    for answer in ("overview", "steps", "configuration"):
        assert page.get(f"/api/{answer}", params={"run": name}).status_code == 404


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "nothing.js", "uPlot.LICENSE"])
def test_only_the_pages_own_files_are_served(run_dir, client, name):
    assert client(run_dir).get(f"/static/{name}").status_code == 404


def test_links_that_lead_out_of_the_run_folder_are_not_followed(tmp_path, ask):
    outside = write_lines(tmp_path / "outside" / "secret.jsonl", group("secret", [1.0, 0.0]))
    folder = tmp_path / "run"
    write_samples(folder, 1, group("mine", [1.0]))
    (folder / "samples" / "step_2.jsonl").symlink_to(outside)
    (folder / "summary.json").symlink_to(outside)
    (folder / "adaptive_rubrics.jsonl").symlink_to(outside)
    (folder / "metrics.jsonl").symlink_to(
        write_lines(tmp_path / "outside" / "metrics.jsonl", [{"step": 1, "key": 1.0}])
    )
    assert ask(folder, "steps")["steps"] == [1]
    overview = ask(folder, "overview")
    assert overview["summary"] == {} and overview["keys"] == []
    assert ask(folder, "rubrics") == {"prompts": []}


def test_every_reply_says_what_a_browser_may_do_with_it(run_dir, client):
    page = client(run_dir)
    for path in ("/", "/static/main.js", "/api/runs", "/nothing"):
        headers = page.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"] and "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert page.get("/").text.count("<script") == page.get("/").text.count('src="/static/')


def test_the_page_makes_no_markup_of_texts_and_asks_nobody_else():
    static = files("shoal.view") / "static"
    ours = [path for path in static.iterdir() if path.name.endswith((".js", ".css")) and "uPlot" not in path.name]
    assert len(ours) > 10
    for path in ours:
        text = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
            assert word not in text, f"{path.name}: {word}"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
        assert len(text.splitlines()) < 600, path.name


def test_other_sites_and_other_names_of_this_address_are_refused(run_dir, client):
    page = client(run_dir)
    assert page.get("/api/runs", headers={"host": "evil.example:7600"}).status_code == 403
    for name in ("localhost:7600", "127.0.0.1", "[::1]:7600"):
        assert page.get("/api/runs", headers={"host": name}).status_code == 200
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert page.get("/api/runs", headers=foreign).status_code == 403
    assert page.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code == 200
    assert page.post("/api/runs").status_code == 403


def test_a_public_address_needs_the_token_which_moves_into_a_cookie(run_dir, client, monkeypatch):
    monkeypatch.delenv("SHOAL_VIEW_TOKEN", raising=False)
    assert Visitors.for_host("127.0.0.1").token == ""
    assert len(Visitors.for_host("0.0.0.0").token) > 20
    monkeypatch.setenv("SHOAL_VIEW_TOKEN", "secret")
    assert Visitors.for_host("0.0.0.0").token == "secret"
    page = client(run_dir, token="secret")
    assert page.get("/api/runs").status_code == 403
    assert page.get("/api/runs", headers={"authorization": "Bearer other"}).status_code == 403
    assert page.get("/api/runs", headers={"authorization": "Bearer secret"}).status_code == 200
    moved = page.get("/", params={"token": "secret"}, follow_redirects=False)
    assert moved.status_code == 303 and moved.headers["location"] == "/"
    assert "HttpOnly" in moved.headers["set-cookie"]
    assert page.get("/api/runs").status_code == 200, "the cookie"


def test_a_value_that_is_none_is_refused_in_words(run_dir, client):
    page = client(run_dir)
    for given in ({"step": "x"}, {"step": "9" * 30}, {"step": 77}, {"step": "٣"}):
        reply = page.get("/api/group", params={"run": "run", "group": 0, **given})
        assert reply.status_code == 404 and reply.json()["error"]
    assert page.get("/api/find", params={"run": "run", "low": "nan"}).status_code == 404
    assert page.get("/api/find", params={"run": "run", "order": "1; DROP TABLE groups"}).status_code == 404


def test_a_path_that_does_not_exist_is_refused_before_anything_is_served(tmp_path, client):
    with pytest.raises(DataError, match="no such file"):
        client(Path(tmp_path / "nowhere"))


def test_a_file_that_is_cut_or_turned_into_a_link_after_it_was_indexed_breaks_nothing(tmp_path, client):
    folder = tmp_path / "run"
    path = write_samples(folder, 1, group("mine", [1.0, 0.0]))
    page = client(folder)
    assert page.get("/api/find", params={"run": "run", "text": "it is"}).json()["total"] == 2
    secret = write_lines(tmp_path / "secret.jsonl", group("secret", [1.0, 0.0], text="it is secret"))
    path.unlink()
    path.symlink_to(secret)
    for answer in ("find", "group"):
        reply = page.get(f"/api/{answer}", params={"run": "run", "step": 1, "group": 0, "text": "it is"})
        assert "secret" not in reply.text


def test_indexed_places_are_read_as_far_as_a_cut_file_still_has_them(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    path = write_samples(folder, 1, group("mine", [1.0, 0.0]))
    run = Runs([folder]).all()[0]
    run.index.update(60)
    path.write_text("")  # as the index does not know yet
    found = run.finder.page(Query(), 0, 10)
    assert [one["text"] for one in found["rows"]] == ["", ""]
    assert run.finder.page(Query(text="it"), 0, 10)["total"] == 0
    assert all(one["unreadable"] for one in read_group(run.index, "samples", 1, 0)["completions"])
