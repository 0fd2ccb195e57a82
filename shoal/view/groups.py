"""Groups as the pages show them: the heat map, one group with its completions, one completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.errors import DataError
from shoal.monitor.samples import EVALUATIONS, SAMPLES
from shoal.view.index import SampleIndex
from shoal.view.lines import number, read_all, read_line
from shoal.view.rows import normal
from shoal.view.scan import read_at

RUBRIC_FILE = "adaptive_rubrics.jsonl"
FIELDS = ("name", "epoch", "source", "count", "known", "rights", "low", "high", "mean", "length", "outcome")


def heat_map(index: SampleIndex, kind: str, after: int = -1) -> dict[str, Any]:
    """Every group of the steps after `after`, step by step, in the order of their files: outcome, mean reward, right
    ones, count, mean length. `waiting` files are not indexed yet."""
    with index.lock:
        rows = index.connection.execute(
            "SELECT step, substr(outcome, 1, 3), mean, rights, count, length, name FROM groups "
            "WHERE kind = ? AND step > ? ORDER BY step, place",
            (kind, after),
        ).fetchall()
        steps: dict[int, list[list[Any]]] = {}
        for step, code, mean, rights, count, length, name in rows:
            steps.setdefault(step, []).append([code, short(mean), rights, count, short(length), name])
        sources = [
            source
            for (source,) in index.connection.execute(
                "SELECT DISTINCT source FROM groups WHERE kind = ? ORDER BY source LIMIT 200", (kind,)
            )
        ]
        total = index.connection.execute(
            "SELECT COALESCE(SUM(count), 0) FROM groups WHERE kind = ?", (kind,)
        ).fetchone()[0]
    return {
        "generation": index.generation,
        "steps": list(steps),
        "groups": list(steps.values()),
        "sources": [source for source in sources if source],
        "completions": total,
        "waiting": index.waiting,
        "broken": index.broken,
    }


def read_group(index: SampleIndex, kind: str, step: int, place: int) -> dict[str, Any]:
    """One group with all that is known of its completions, and the way to its neighbours.

    Raises:
        DataError: there is no such group.
    """
    with index.lock:
        row = index.connection.execute(
            f"SELECT {', '.join('g.' + name for name in FIELDS)}, g.first, f.path FROM groups g "
            "JOIN files f ON f.id = g.file WHERE g.kind = ? AND g.step = ? AND g.place = ?",
            (kind, step, place),
        ).fetchone()
        if row is None:
            raise DataError(f"step {step} has no group {place} here")
        places = index.connection.execute(
            "SELECT idx, offset, size FROM completions WHERE id >= ? AND id < ? ORDER BY id",
            (row[-2], row[-2] + row[3]),
        ).fetchall()
        around = _neighbours(index, kind, step, place)
        again = [
            {"step": one[0], "group": one[1], "rights": one[2], "count": one[3], "mean": one[4], "outcome": one[5]}
            for one in index.connection.execute(
                "SELECT step, place, rights, count, mean, outcome FROM groups WHERE kind = ? AND name = ? "
                "ORDER BY step LIMIT 200",
                (kind, row[0]),
            )
        ]
    group = dict(zip(FIELDS, row, strict=False))
    path = index.path(kind, row[-1])
    try:
        lines = list(read_at(path, [(offset, size) for _, offset, size in places]))
    except OSError as error:
        raise DataError(f"{path.name} cannot be read any more: {error}") from error
    completions = []
    for position, ((number_, offset, _), raw) in enumerate(zip(places, lines, strict=True)):
        found = normal(read_line(raw) or {"text": None, "unreadable": True}, place)
        completions.append({**found, "index": number_, "position": position, "offset": offset})
    group |= {"step": step, "group": place, "kind": kind, "completions": completions, "again": again, **around}
    group["words"] = words_for(group)
    _add_rubrics(index.run_dir, group)
    return group


def words_for(group: dict[str, Any]) -> str:
    """What came of a group, in a sentence or two."""
    count, known, rights = group["count"], group["known"], group["rights"]
    if count == known == 1:
        sentence = f"The completion is {'right' if rights else 'not right'}."
    elif group["kind"] == EVALUATIONS or group["outcome"] == "mixed":
        sentence = f"{rights} of {count} completions {'is' if rights == 1 else 'are'} right."
    elif known < 2:
        sentence = f"Only one reward of {count} is known." if known else "No reward is known."
    else:
        all_of_them = f"All {known} completions" if known == count else f"All {known} completions with a known reward"
        texts = {
            "wrong": f"{all_of_them} failed: every advantage is 0.",
            "right": f"{all_of_them} are right: every advantage is 0.",
            "equal": f"{all_of_them} have the reward {group['low']:g}: every advantage is 0.",
        }
        sentence = texts[group["outcome"]]
    if 2 <= known < count:
        sentence += f" {count - known} of {count} rewards {'is' if count - known == 1 else 'are'} missing."
    reasons = sorted({str(one["left_out"]) for one in group["completions"] if one.get("left_out")})
    if reasons:
        in_part = "" if all(one.get("left_out") for one in group["completions"]) else ", in part"
        sentence += f" Left out of training{in_part}: {'; '.join(reasons)}."
    return sentence


def _neighbours(index: SampleIndex, kind: str, step: int, place: int) -> dict[str, Any]:
    """The groups before and after, within the step and of the next step."""

    def one(condition: str, order: str, values: tuple[Any, ...]) -> list[int] | None:
        row = index.connection.execute(
            f"SELECT step, place FROM groups WHERE kind = ? AND {condition} ORDER BY {order} LIMIT 1", (kind, *values)
        ).fetchone()
        return list(row) if row else None

    return {
        "before": one("(step, place) < (?, ?)", "step DESC, place DESC", (step, place)),
        "after": one("(step, place) > (?, ?)", "step, place", (step, place)),
        "step_before": one("step < ? AND place <= ?", "step DESC, place DESC", (step, place)),
        "step_after": one("step > ? AND place <= ?", "step, place DESC", (step, place)),
    }


def _add_rubrics(run_dir: Path, group: dict[str, Any]) -> None:
    """Scores by criterion, from the rubrics' own file: its row for this step and prompt, where their numbers agree."""
    if group["kind"] != SAMPLES or not run_dir.is_dir():
        return
    count = len(group["completions"])
    for row in read_all(run_dir, RUBRIC_FILE):
        if row.get("step") != group["step"] or row.get("prompt") != group["name"]:
            continue
        criteria = row.get("criteria") if isinstance(row.get("criteria"), list) else []
        fitting = [
            {
                "title": str(one.get("title", "")),
                "description": str(one.get("description", "")),
                "weight": number(one.get("weight")),
                "origin": str(one.get("origin", "")),
                "scores": [number(score) for score in one["scores"]],
            }
            for one in criteria or []
            if isinstance(one, dict) and isinstance(one.get("scores"), list) and len(one["scores"]) == count
        ]
        if fitting:
            group["criteria"] = fitting
            return


def short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
