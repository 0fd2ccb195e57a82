"""Finding completions: by what the index knows, and by their texts, which are read from the files."""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import isfinite
from threading import Lock
from time import monotonic
from typing import Any

from shoal.errors import DataError
from shoal.monitor.samples import SAMPLES
from shoal.view.index import SampleIndex
from shoal.view.lines import read_line
from shoal.view.scan import read_at

ORDERS = {
    "step": "g.step DESC, g.place, c.id",
    "oldest": "g.step, g.place, c.id",
    "reward": "c.reward IS NULL, c.reward DESC, g.step DESC, c.id",
    "lowest": "c.reward IS NULL, c.reward, g.step DESC, c.id",
    "longest": "c.length DESC, g.step DESC, c.id",
    "shortest": "c.length, g.step DESC, c.id",
    "gap": "c.gap IS NULL, c.gap DESC, g.step DESC, c.id",
    "advantage": "abs(c.advantage) DESC, g.step DESC, c.id",
}
KEPT_RESULTS = 8
LEFT_OUT = "left out"


@dataclass(frozen=True)
class Query:
    """What is looked for. Empty fields do not restrict; `text` is looked for in prompts and completions, whatever the
    case of its letters; `prompt` in prompt ids. The outcome `left out` is that of single completions."""

    kind: str = SAMPLES
    text: str = ""
    prompt: str = ""
    source: str = ""
    stop: str = ""
    outcome: str = ""
    low: float | None = None
    high: float | None = None
    first: int | None = None
    last: int | None = None
    order: str = "step"

    @classmethod
    def read(cls, given: dict[str, str]) -> Query:
        """From the words of an address.

        Raises:
            DataError: a number is none, or there is no such order.
        """
        values: dict[str, Any] = {}
        for one in fields(cls):
            word = given.get(one.name, "")
            if word == "":
                continue
            values[one.name] = word
            if one.name in ("low", "high"):
                values[one.name] = _number(one.name, word)
            elif one.name in ("first", "last"):
                values[one.name] = int(_number(one.name, word))
        if values.get("order", "step") not in ORDERS:
            raise DataError(f"order={values['order']}: one of {', '.join(ORDERS)}")
        return cls(**values)

    def condition(self) -> tuple[str, list[Any]]:
        """For SQL: over groups `g` and completions `c`."""
        parts = ["g.kind = ?"]
        values: list[Any] = [self.kind]
        for text, value in (
            ("instr(lower(g.name), lower(?)) > 0", self.prompt or None),
            ("g.source = ?", self.source or None),
            ("c.stop = ?", self.stop or None),
            ("g.outcome = ?", self.outcome if self.outcome not in ("", LEFT_OUT) else None),
            ("c.reward >= ?", self.low),
            ("c.reward <= ?", self.high),
            ("g.step >= ?", self.first),
            ("g.step <= ?", self.last),
        ):
            if value is not None:
                parts.append(text)
                values.append(value)
        if self.outcome == LEFT_OUT:
            parts.append("c.left_out")
        return " AND ".join(parts), values


def _number(name: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not isfinite(value) or abs(value) > 1e15:
        raise DataError(f"{name}={word}: not a number")
    return value


@dataclass
class Result:
    """Ids of completions that were found; `left` are those whose texts are still to be looked at, in order."""

    generation: int
    found: array[int]
    left: array[int] = field(default_factory=lambda: array("q"))
    looked: int = 0


class Finder:
    """Queries on one index. The newest results are kept, as numbers, so that pages of one result agree."""

    def __init__(self, index: SampleIndex) -> None:
        self.index = index
        self.results: OrderedDict[Query, Result] = OrderedDict()
        self.lock = Lock()

    def page(self, query: Query, start: int, count: int, seconds: float = 0.3) -> dict[str, Any]:
        """Up to `count` completions from number `start` on. `total` are those found so far; `left` are those whose
        text is still to be looked at, which a further call goes on with: each call looks for about so long."""
        with self.lock:
            result = self._result(query)
            until = monotonic() + seconds
            while result.left and monotonic() < until:
                self._look(query, result)
            chosen = result.found[start : start + count]
            return {
                "total": len(result.found),
                "left": len(result.left) - result.looked,
                "start": start,
                "rows": self._rows(chosen),
            }

    def _result(self, query: Query) -> Result:
        with self.index.lock:
            known = self.results.get(query)
            if known is not None and known.generation == self.index.generation:
                self.results.move_to_end(query)
                return known
            where, values = query.condition()
            ids = array(
                "q",
                (
                    number
                    for (number,) in self.index.connection.execute(
                        "SELECT c.id FROM groups g CROSS JOIN completions c "
                        f"ON c.id BETWEEN g.first AND g.first + g.count - 1 WHERE {where} "
                        f"ORDER BY {ORDERS[query.order]}",
                        values,
                    )
                ),
            )
            result = Result(self.index.generation, ids)
            if query.text:
                result = Result(self.index.generation, array("q"), ids)
        self.results[query] = result
        while len(self.results) > KEPT_RESULTS:
            self.results.popitem(last=False)
        return result

    def _look(self, query: Query, result: Result, chunk: int = 256) -> None:
        """Looks at the texts of the next completions: at their bytes first, and decoded only where those may match."""
        ids = result.left[result.looked : result.looked + chunk]
        needles = needles_of(query.text)
        wanted = query.text.casefold()
        for path, rows in self._places(ids):
            with suppress(OSError):
                lines = read_at(path, [(offset, size) for _, offset, size in rows])
                for (number, *_), raw in zip(rows, lines, strict=True):
                    lowered = raw.lower()
                    if any(needle in lowered for needle in needles) and _in_texts(raw, wanted):
                        result.found.append(number)
        result.looked += len(ids)
        if result.looked >= len(result.left):
            result.left, result.looked = array("q"), 0

    def _places(self, ids: array[int]) -> list[tuple[Any, list[tuple[int, int, int]]]]:
        """Runs of completions that follow one another in one file: its path; ids, offsets and sizes."""
        with self.index.lock:
            rows = {
                row[0]: row[1:]
                for row in self.index.connection.execute(
                    "SELECT c.id, c.offset, c.size, f.kind, f.path FROM completions c JOIN groups g ON g.id = c.grp "
                    f"JOIN files f ON f.id = g.file WHERE c.id IN ({','.join('?' * len(ids))})",
                    list(ids),
                )
            }
        runs: list[tuple[Any, list[tuple[int, int, int]]]] = []
        for number in ids:
            if number not in rows:
                continue
            offset, size, kind, name = rows[number]
            path = self.index.path(kind, name)
            if not runs or runs[-1][0] != path:
                runs.append((path, []))
            runs[-1][1].append((number, offset, size))
        return runs

    def _rows(self, ids: array[int]) -> list[dict[str, Any]]:
        """What a list shows of these completions: numbers from the index, the beginnings of texts from the files."""
        texts: dict[int, dict[str, str]] = {}
        for path, rows in self._places(ids):
            with suppress(OSError):
                lines = read_at(path, [(offset, size) for _, offset, size in rows])
                texts |= {
                    number: _beginnings(read_line(raw) or {}) for (number, *_), raw in zip(rows, lines, strict=True)
                }
        with self.index.lock:
            known = {
                row[0]: row[1:]
                for row in self.index.connection.execute(
                    "SELECT c.id, g.step, g.place, c.id - g.first, g.name, g.outcome, c.reward, c.advantage, c.stop, "
                    "c.length, c.left_out, c.gap FROM completions c JOIN groups g ON g.id = c.grp "
                    f"WHERE c.id IN ({','.join('?' * len(ids))})",
                    list(ids),
                )
            }
        names = (
            "step",
            "group",
            "index",
            "name",
            "outcome",
            "reward",
            "advantage",
            "stop",
            "length",
            "left_out",
            "gap",
        )
        return [
            {**dict(zip(names, known[number], strict=True)), **texts.get(number, _beginnings({}))}
            for number in ids
            if number in known
        ]


def needles_of(text: str) -> list[bytes]:
    """The lower-case bytes of a text as JSON may hold it: with letters as they are, or escaped.

    Of letters beyond ASCII the case is not known to `bytes.lower`, so the longest ASCII run of the text stands for it;
    what it finds is compared again once decoded. A text without ASCII letters matches every line at first.
    """
    runs, run = [""], ""
    for letter in text:
        run = run + letter if letter.isascii() and letter.isprintable() and letter not in '"\\/' else ""
        runs.append(run)
    return [max(runs, key=len).lower().encode()]


def _in_texts(raw: bytes, wanted: str) -> bool:
    row = read_line(raw)
    return row is not None and any(wanted in text.casefold() for text in searched(row))


def searched(row: dict[str, Any]) -> list[str]:
    """The texts of a row that a search looks in: what was asked, what was answered, what tools and others said."""
    texts = [row.get("prompt"), row.get("text"), row.get("completion"), row.get("ground_truth")]
    for said in (row.get("messages"), row.get("info")):
        if said:
            texts.append(json.dumps(said, ensure_ascii=False))
    return [text for text in texts if isinstance(text, str)]


def _beginnings(row: dict[str, Any], length: int = 160) -> dict[str, str]:
    text = row.get("text", row.get("completion"))
    prompt = row.get("prompt")
    return {
        "prompt": prompt[-length:] if isinstance(prompt, str) else "",
        "text": text[:length] if isinstance(text, str) else "",
    }
