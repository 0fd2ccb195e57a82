"""The pages in a real browser: Debian's Chromium, without a window."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn
from view.browser_runs import HOSTILE, LOST, NEVER, STEPS, WHY, WORST_TOKEN, all_runs, metrics_row
from view.run_folders import write_samples

from shoal.monitor.rows import read_rows
from shoal.view.app import build_app
from shoal.view.export import export

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-dev-shm-usage",
]
PAGES = {
    "runs": ("runs", {}),
    "curves": ("run", {"run": "finished"}),
    "steps": ("steps", {"run": "finished"}),
    "group": ("group", {"run": "finished", "step": 3, "group": 0, "base": 0}),
    "completion": ("completion", {"run": "finished", "step": 3, "group": 0, "index": 1}),
    "evaluations": ("evaluations", {"run": "finished"}),
    "time": ("waiting", {"run": "finished"}),
    "settings": ("settings", {"run": "finished"}),
    "compare": ("compare", {"runs": "sweep/0\nsweep/1"}),
    "rubrics": ("rubrics", {"run": "rubric"}),
    "load": ("waiting", {"run": "asynchronous"}),
    "file": ("steps", {"run": "answers.jsonl"}),
}


class Browser:
    """One browser for the file; what it asked for and what it complained of is kept."""

    def __init__(self, chromium: Any, base: str) -> None:
        self.chromium = chromium
        self.base = base
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.contexts: list[Any] = []

    def window(self, width: int = 1280, height: int = 900, colours: str = "light") -> Any:
        context = self.chromium.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        return page

    def open(self, page: Any, name: str, /, **given: Any) -> Any:
        """Goes to a page, waits until it is drawn."""
        before = page.evaluate("document.body?.dataset.ready") if page.url.startswith(self.base) else None
        page.goto(f"{self.base}/#{name}?{urlencode(given)}")
        expect(page.locator("body")).to_have_attribute("data-ready", re.compile(rf"^(?!{before}$)\d+$"))
        return page

    def close(self) -> None:
        """Ends the windows of a test."""
        for context in self.contexts:
            context.close()
        self.contexts = []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return all_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole_browser(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_CACHE", str(tmp_path_factory.mktemp("browser_cache")))
    server = uvicorn.Server(uvicorn.Config(build_app([root]), port=0, log_config=None, timeout_graceful_shutdown=1))
    listening = server.config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        with playwright.sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            yield Browser(chromium, f"http://127.0.0.1:{listening.getsockname()[1]}")
            chromium.close()
    finally:
        server.should_exit = True
        thread.join(10)
        patch.undo()


@pytest.fixture
def browser(whole_browser: Browser) -> Iterator[Browser]:
    """No test may leave its origin, or a complaint on the console."""
    whole_browser.asked.clear()
    whole_browser.complaints.clear()
    yield whole_browser
    whole_browser.close()
    assert whole_browser.complaints == []
    foreign = [url for url in whole_browser.asked if not url.startswith((whole_browser.base, "file://", "data:"))]
    assert foreign == []


def until(page: Any, text: str, where: str = "body") -> None:
    """Waits until an element says so."""
    expect(page.locator(where).first).to_contain_text(text)


def number(text: str) -> float:
    """A number as the pages write it."""
    return float(text.replace("−", "-").replace("+", "").replace("±", "").replace(",", ""))


def legend(page: Any, title: str) -> dict[str, float]:
    """The values below a chart, by their labels; waits until the chart is there."""
    found = page.locator("figure.chart", has=page.locator("figcaption b", has_text=re.compile(f"^{re.escape(title)}$")))
    found.first.locator(".key b").first.wait_for()
    read = "keys => keys.map(key => [key.childNodes[1].textContent.trim(), key.querySelector('b').textContent])"
    return {label: number(text) for label, text in found.first.locator(".key").evaluate_all(read)}


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_every_page_is_drawn_fits_the_window_and_can_be_used_by_everybody(browser, width, colours):
    page = browser.window(width, colours=colours)
    checker = axe.Axe()
    for title, (name, given) in PAGES.items():
        browser.open(page, name, **given)
        assert page.locator("h1").count() >= 1, title
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{title} is wider than the window"
        found = checker.run(page).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"][:120]) for one in found] == [], title


def test_curves_show_the_last_numbers_of_metrics_jsonl_and_under_the_cursor_the_others(browser, root):
    page = browser.open(browser.window(), "run", run="finished")
    rows = read_rows(root / "finished")
    last = [row for row in rows if "reward/mean" in row][-1]
    assert legend(page, "Reward") == pytest.approx({"training": last["reward/mean"], "held-out": 0.5}, rel=1e-3)
    assert legend(page, "Length") == pytest.approx({"mean": last["length/mean"], "longest": 40}, rel=1e-3)
    assert legend(page, "Seconds by phase")["rollout"] == pytest.approx(last["seconds/rollout"], rel=1e-3)
    assert legend(page, "Gradient norm")["norm"] == pytest.approx(last["train/grad_norm"], rel=1e-3)
    assert page.locator("dl.facts").inner_text().count("finished") >= 1
    assert "cut off at the token limit" in page.locator(".notes").inner_text()
    chart = page.locator("figure.chart").first
    chart.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert legend(page, "Reward")["training"] == pytest.approx(metrics_row(1)["reward/mean"], rel=1e-3)
    assert legend(page, "Length")["mean"] == pytest.approx(21.0), "one cursor over all charts"


def test_any_number_of_the_run_becomes_a_chart_and_part_of_the_address(browser):
    page = browser.open(browser.window(), "run", run="finished")
    field = page.get_by_label("a number of the run")
    field.fill("engine/mean_rows")
    field.press("Enter")
    expect(page).to_have_url(re.compile("mean_rows"))
    page.reload()
    page.locator("figcaption b", has_text="engine/mean_rows").wait_for()
    assert legend(page, "engine/mean_rows")["mean_rows"] == 12


def test_the_curves_of_a_running_run_grow_without_reload(browser, root):
    page = browser.open(browser.window(), "run", run="running")
    page.evaluate("window.same = true")
    with (root / "running" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_row(STEPS) | {"step": STEPS + 1, "length/mean": 77.0}) + "\n")
    until(page, "13 of", "dl.facts")
    assert legend(page, "Length")["mean"] == 77.0
    assert page.evaluate("window.same")


def test_an_aborted_run_says_what_ended_it(browser):
    page = browser.open(browser.window(), "run", run="aborted")
    assert page.locator("#status").inner_text() == "failed"
    assert "step 3: the loss is not finite" in page.locator(".notes").inner_text()
    assert legend(page, "Reward") == pytest.approx({"training": metrics_row(2)["reward/mean"]}, rel=1e-3)


def test_a_sweep_is_compared_by_the_keys_that_differ(browser):
    page = browser.open(browser.window(), "runs")
    for run in ("sweep/0", "sweep/1"):
        page.get_by_label(f"compare {run}").check()
    page.get_by_role("button", name="compare 2 runs").click()
    page.get_by_role("heading", name="Compare 2 runs").wait_for()
    rows = page.locator("section", has_text="What differs").locator("tbody tr").all_inner_texts()
    assert rows == ["optimizer.lr\t0.1\t0.2"]
    assert legend(page, "Reward: training")["0: lr 0.1"] == pytest.approx(metrics_row(3)["reward/mean"], rel=1e-3)


def test_the_map_opens_a_group_by_keys_and_by_mouse(browser):
    page = browser.open(browser.window(), "steps", run="finished")
    page.keyboard.press("m")
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert "step 3, group 1: all right, 4 of 4 right" in page.locator(".tip").inner_text()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Step 3, group 1").wait_for()
    assert "All 4 completions are right" in page.locator(".story").inner_text()
    page.go_back()
    canvas = page.locator(".map canvas")
    canvas.click(position={"x": 3, "y": 3})
    page.get_by_role("heading", name="Step 1, group 0").wait_for()


def test_a_group_shows_its_completions_by_reward_and_marks_what_differs(browser, root):
    page = browser.open(browser.window(), "group", run="finished", step=3, group=0)
    lines = (root / "finished" / "samples" / "step_3.jsonl").read_text().splitlines()[:4]
    expected = sorted((json.loads(line) for line in lines), key=lambda one: (-one["reward"], one["index"]))
    cards = page.locator("article.card")
    assert [text.split()[0] for text in cards.all_inner_texts()] == [f"#{one['index']}" for one in expected]
    table = page.get_by_role("region", name="Rewards in parts").locator("tbody tr").all_inner_texts()
    shown = [[number(cell) for cell in line.split("\t")[1:5]] for line in table]
    assert shown == [[one["reward"], one["reward_parts"]["answer"], 0.5, one["advantage"]] for one in expected]
    assert "Think first." in page.locator(".prompt").inner_text()
    page.keyboard.press("d")
    assert page.locator("article.card ins").first.inner_text() == "6"
    assert page.locator("article.card del").first.inner_text() == "5"
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Step 4, group 0").wait_for()
    page.keyboard.press("j")
    page.get_by_role("heading", name="Step 4, group 1").wait_for()


def test_search_finds_texts_and_its_address_can_be_sent(browser):
    page = browser.open(browser.window(), "steps", run="finished")
    page.keyboard.press("/")
    page.keyboard.type("2+3=6")
    until(page, "108 completions found")
    page.get_by_label("reward from").fill("0")
    until(page, "72 completions found")
    other = browser.window()
    other.goto(page.url)
    until(other, "72 completions found")
    other.locator(".long a.row").first.click()
    other.locator("mark", has_text="2+3=6").first.wait_for()


def test_tool_calls_are_shown_where_they_happened(browser):
    page = browser.open(browser.window(), "completion", run="tools", step=1, group=0, index=0)
    talk = page.locator(".talk").inner_text()
    assert re.search(r"I compute\..*42.*It is 42\.", talk, re.DOTALL)
    assert "print(6 * 7)" in talk and "SyntaxError: invalid syntax" in talk


def test_groups_of_a_foreign_environment_are_shown_without_a_prompt(browser):
    page = browser.open(browser.window(), "group", run="foreign", step=1, group=0)
    assert "sent no prompt" in page.locator(".prompt").inner_text()
    assert [text.split()[1] for text in page.locator("article.card").all_inner_texts()] == ["1", "-1"]
    assert "Your move." in page.locator("article.card").first.inner_text()


def test_whatever_waited_or_was_busy_is_drawn_by_its_prefix_and_its_unit(browser, root):
    page = browser.open(browser.window(), "waiting", run="asynchronous")
    titles = page.locator("figure.chart figcaption").all_inner_texts()
    assert {
        "Waiting seconds",
        "Asynchronous rollout seconds",
        "Asynchronous rollout versions",
        "Asynchronous rollout shares",
    } <= set(titles)
    assert legend(page, "Waiting") == {"learner seconds": 0.4, "for groups": 1.5}
    assert legend(page, "Slots") == {"waiting": 5}
    table = page.get_by_role("region", name="Where the time went").inner_text()
    assert "Waiting: for groups" in table and "Asynchronous rollout: train seconds" in table
    with (root / "asynchronous" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_row(2) | {"cluster/new_number": 7}) + "\n")
    until(page, "new number 7", "figure.chart:has-text('Cluster')")


def test_a_file_of_saved_answers_beside_the_runs_is_opened_and_its_groups_fold_into_a_map(browser):
    page = browser.open(browser.window(), "runs")
    page.get_by_role("link", name="answers.jsonl").click()
    until(page, "1 step, 100 completions", ".head")
    assert page.locator(".map canvas").bounding_box()["height"] < 500
    page.locator(".map").focus()
    for key in ("Home", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.get_by_role("heading", name="Step 0, group 33").wait_for()
    assert page.locator(".story").inner_text() == "The completion is right."


def test_rubrics_show_scores_and_what_was_added_and_given_up(browser):
    page = browser.open(browser.window(), "rubrics", run="rubric")
    rows = page.locator("table.grid tbody tr").all_inner_texts()
    assert rows[0].startswith("Names the cause\t+2\tstatic\t0.75 ± 0.25")
    assert "given up" in rows[1] and "0 ± 0" in rows[1]
    browser.open(page, "group", run="rubric", step=1, group=0)
    scores = page.get_by_role("region", name="Scores by criterion").locator("tbody tr").all_inner_texts()
    assert scores == ["Names the cause\t+2\tstatic\t1\t0.5"]


def test_hostile_texts_are_shown_letter_by_letter(browser):
    page = browser.open(browser.window(), "group", run="hostile", step=1, group=0)
    text = page.locator("article.card").all_inner_texts()
    assert HOSTILE[0] in text[0]
    assert "␛[2J" in text[1] and "U+202E" in text[1] and "a␀b" in text[1]
    assert "show more" in text[2]
    assert page.evaluate("window.hacked") is None
    assert page.locator("main script, main img, main b:has-text('bold')").count() == 0
    browser.open(page, "steps", run="hostile")
    until(page, "4 completions found")
    assert "1 line that cannot be read" in page.locator(".head").inner_text()
    browser.open(page, "completion", run="hostile", step=1, group=0, index=2)
    before = len(page.locator(".talk").inner_text())
    page.locator(".talk button.more").click()
    assert len(page.locator(".talk").inner_text()) > before + 100_000


def test_what_is_not_there_is_said_in_words(browser):
    page = browser.window()
    page.on("console", lambda said: browser.complaints.clear())  # the browser itself complains of each status 404
    browser.open(page, "run", run="../../etc")
    assert "no run '../../etc' here" in page.get_by_role("alert").inner_text()
    browser.open(page, "group", run="finished", step=99, group=0)
    assert "step 99 has no group 0" in page.get_by_role("alert").inner_text()
    page.wait_for_timeout(50)
    browser.complaints.clear()


def test_a_newcomer_finds_out_what_went_wrong_from_the_pages_alone(browser):
    page = browser.open(browser.window(), "runs")
    page.get_by_role("link", name="finished", exact=True).click()
    # Which reward part fell?
    moves = page.locator(".move")
    moves.first.wait_for()
    fell = [text for text in moves.all_inner_texts() if "fell" in text]
    assert len(fell) == 1 and fell[0].startswith("part format 0.85 → 0.3")
    # Which prompt was lost between two evaluations?
    page.get_by_role("link", name="Evaluations").click()
    page.get_by_role("button", name="1 lost again").click()
    assert page.locator("table.grid tbody tr").all_inner_texts() == [f"{LOST}\tlost\tright\tright\twrong ↓"]
    page.get_by_role("button", name="1 never right").click()
    assert page.locator("table.grid tbody th").all_inner_texts() == [NEVER]
    # Why was a group left out?
    page.get_by_role("link", name="Steps").click()
    page.get_by_label("any outcome").select_option("left out of training")
    until(page, "48 completions found")
    page.locator(".long a.row").first.click()
    page.get_by_text("Left out of training").first.wait_for()
    page.keyboard.press("g")
    page.locator(".story").wait_for()
    assert WHY in page.locator(".story").inner_text()
    # Where do sampler and learner disagree most?
    page.get_by_role("link", name="Steps").click()
    page.get_by_label("first the").select_option("largest gap between sampler and learner")
    expect(page.locator(".long a.row b").first).to_have_text("3/0/1")
    page.locator(".long a.row").first.click()
    worst = page.get_by_role("region", name="Where sampler and learner disagree most").locator("tbody tr").first
    assert worst.inner_text().split("\t")[0] == str(WORST_TOKEN)
    assert number(worst.inner_text().split("\t")[-1]) == pytest.approx(-1.5)
    worst.get_by_role("button").click()
    assert page.locator(".token.chosen").inner_text().strip() == f"word{WORST_TOKEN}"


def test_new_steps_and_groups_of_a_running_run_come_into_the_map(browser, root):
    page = browser.open(browser.window(), "steps", run="running")
    until(page, "12 steps", ".head")
    lines = (root / "running" / "samples" / "step_12.jsonl").read_text().splitlines()
    write_samples(root / "running", STEPS + 1, [json.loads(line) for line in lines])
    until(page, "13 steps", ".head")


def test_pictures_for_the_docs_can_be_taken(browser, root, tmp_path, monkeypatch):
    """SHOAL_PICTURES=docs SHOAL_PICTURES_OF=outputs/story takes those in docs/, of a run of the default task."""
    folder = Path(os.environ.get("SHOAL_PICTURES", tmp_path)).resolve()
    run = "finished"
    if "SHOAL_PICTURES_OF" in os.environ:
        run = "outputs/story"
        shutil.copytree(os.environ["SHOAL_PICTURES_OF"], root / run)
    monkeypatch.chdir(root)  # paths are shown from here
    for name, page_name, given in (
        ("view-curves", "run", {}),
        ("view-steps", "steps", {}),
        ("view-group", "group", {"step": 3, "group": 2, "base": 2}),
    ):
        page = browser.window(1280, 800)
        page.goto(browser.base)
        until(page, "runs", "h1")
        browser.open(page, page_name, run=run, **given)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size > 10_000


def test_an_exported_file_shows_the_run_without_a_server(browser, root, tmp_path):
    assert export([root / "finished"], tmp_path / "run.html", groups=8) == 0
    page = browser.window()
    page.goto(f"file://{tmp_path / 'run.html'}#run?run=finished")
    expect(page.locator("body")).to_have_attribute("data-ready", re.compile("."))
    assert legend(page, "Reward")["training"] == pytest.approx(metrics_row(STEPS)["reward/mean"], rel=1e-3)
    page.get_by_role("link", name="Steps").click()
    page.locator(".map").focus()
    for key in ("Home", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    until(page, "step 1, group 0: mixed, 2 of 4 right", ".tip")
    page.get_by_role("link", name="Evaluations").click()
    page.get_by_role("button", name="1 lost again").click()
    until(page, LOST, "table.grid")
    held = [url for url in browser.asked if not url.startswith("file://")]
    assert held == [], "nothing is asked for"


def test_a_long_list_scrolls_to_its_end(browser, root):
    page = browser.open(browser.window(), "steps", run="finished", order="oldest")
    until(page, "192 completions found")
    page.locator(".long").evaluate("list => { list.scrollTop = list.scrollHeight; }")
    until(page, "12/3/3", ".long [data-place='191']")
    page.locator(".long [data-place='191']").focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".long [data-place='190']")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Completion 2").wait_for()
