"""What the page asks for, by name, as plain values: served over HTTP, and put into an exported file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shoal.errors import DataError
from shoal.monitor.samples import EVALUATIONS, SAMPLES
from shoal.monitor.summary import SUMMARY_FILE
from shoal.view.evaluations import evaluations
from shoal.view.find import Query
from shoal.view.groups import heat_map, read_group
from shoal.view.lines import number, read_object
from shoal.view.rubrics import rubrics
from shoal.view.runs import Run, Runs, shown_path
from shoal.view.settings import against_preset, differing, overrides, settings

LARGEST_PAGE = 500
SUMMARY_KEYS = (
    *("status", "steps", "completions", "sampled_tokens", "seconds_rl", "seconds_total", "resume_count"),
    *("accuracy_before", "accuracy_after", "accuracy_best", "best_step", "best_by"),
    *("eval_reward_before", "eval_reward_after", "reward_first", "reward_last"),
)

Given = Mapping[str, str]


def runs(found: Runs, given: Given) -> Any:
    """All runs, the newest first."""
    return {"runs": [run.head() for run in found.all()], "roots": [shown_path(root) for root in found.roots]}


def overview(run: Run, given: Given) -> Any:
    """What a run is: where it stands, its summary, its configuration, and notes and warnings in words."""
    summary = read_object(run.file(SUMMARY_FILE))
    return {
        **run.head(),
        "keys": list(run.metrics.columns),
        "summary": {key: summary[key] for key in SUMMARY_KEYS if key in summary},
        "notes": run.read_notes()[-500:],
        "broken": run.metrics.follower.broken,
        "total_steps": number(settings(run.path).get("run.steps")),
    }


def configuration(run: Run, given: Given) -> Any:
    """Every key and its value, and what differs from the preset."""
    return {"settings": settings(run.path), "overrides": overrides(run.path), "preset": against_preset(run.path)}


def metrics(run: Run, given: Given) -> Any:
    """The values of `keys` (separated by commas) in rows from number `after` on."""
    run.metrics.update()
    keys = given.get("keys", "").split(",") if given.get("keys") else list(run.metrics.columns)
    after = _whole(given, "after", 0)
    if given.get("generation") not in (None, str(run.metrics.generation)):
        after = 0
    return {**run.metrics.series(keys, after), "after": after, "status": run.status()}


def steps(run: Run, given: Given) -> Any:
    """The heat map; `after` leaves steps up to that one out."""
    # The larger the map already is, the longer between two of them: else most of the time would go into sending it.
    run.index.update(min(max(0.5, run.index.groups / 20_000), 5.0))
    return heat_map(run.index, _kind(given), _whole(given, "after", -1))


def find(run: Run, given: Given) -> Any:
    """A page of the completions that a query finds."""
    run.index.update(0.3)
    query = Query.read({**given, "kind": _kind(given)})
    start = _whole(given, "start", 0)
    count = min(_whole(given, "count", 100), LARGEST_PAGE)
    return {**run.finder.page(query, start, count), "waiting": run.index.waiting}


def group(run: Run, given: Given) -> Any:
    """One group side by side."""
    run.index.update(0.3)
    return read_group(run.index, _kind(given), _whole(given, "step", 0), _whole(given, "group", 0))


def evaluated(run: Run, given: Given) -> Any:
    """Held-out prompts over the evaluations."""
    run.index.update()
    return evaluations(run.index)


def criteria(run: Run, given: Given) -> Any:
    """Rubrics by prompt."""
    return rubrics(run.path) if run.path.is_dir() else {"prompts": []}


def compare(found: Runs, given: Given) -> Any:
    """Several runs (names separated by newlines): the keys that differ, and where each stands."""
    chosen = [found.named(name) for name in given.get("runs", "").split("\n") if name]
    return {
        "runs": [run.head() for run in chosen],
        "keys": sorted({key for run in chosen for key in run.metrics.columns}),
        "differing": differing({run.name: run.path for run in chosen}),
    }


OF_ALL: dict[str, Callable[[Runs, Given], Any]] = {"runs": runs, "compare": compare}
OF_ONE: dict[str, Callable[[Run, Given], Any]] = {
    "overview": overview,
    "configuration": configuration,
    "metrics": metrics,
    "steps": steps,
    "find": find,
    "group": group,
    "evaluations": evaluated,
    "rubrics": criteria,
}


def answer(found: Runs, name: str, given: Given) -> Any:
    """The answer of that name; `run` in `given` says of which run.

    Raises:
        DataError: there is no such answer, run, step or group, or a value is none.
    """
    if name in OF_ALL:
        return OF_ALL[name](found, given)
    if name not in OF_ONE:
        raise DataError(f"nothing is called {name!r} here")
    return OF_ONE[name](found.named(given.get("run", "")), given)


def _kind(given: Given) -> str:
    return EVALUATIONS if given.get("kind") == EVALUATIONS else SAMPLES


def _whole(given: Given, name: str, default: int) -> int:
    word = given.get(name)
    if word is None or word == "":
        return default
    digits = word.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise DataError(f"{name}={word}: not a whole number")
    return int(word)
