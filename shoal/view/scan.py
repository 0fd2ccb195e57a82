"""One file of samples, line by line: where each completion stands and what it came to, without its texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shoal.view.lines import LONGEST_LINE, number, read_line
from shoal.view.rows import is_right, normal, outcome


class Tokens(msgspec.Struct):
    """The columns of recorded tokens that the index looks at."""

    sampler: list[float | None] | None = None
    learner: list[float | None] | None = None
    mask: list[int] | None = None


class Line(msgspec.Struct):
    """What the index keeps of a line. Other fields, the texts above all, are skipped without being decoded."""

    group: str | int | None = None
    epoch: int | None = None
    index: int | None = None
    source: str | None = None
    reward: float | None = None
    reward_parts: dict[str, float | None] | None = None
    advantage: float | None = None
    stop_reason: str | None = None
    length: int | None = None
    left_out: str | None = None
    tokens: Tokens | None = None


DECODER = msgspec.json.Decoder(Line)


@dataclass
class Found:
    """One completion: its place in the file, in bytes, and its numbers."""

    offset: int
    size: int
    index: int
    reward: float | None
    advantage: float | None
    stop: str
    length: int | None
    right: bool
    left_out: bool
    gap: float | None

    def numbers(self) -> tuple[Any, ...]:
        """All of it, in this order."""
        return (
            *(self.index, self.offset, self.size, self.reward, self.advantage),
            *(self.stop, self.length, self.right, self.left_out, self.gap),
        )


@dataclass
class FoundGroup:
    """Completions that follow one another under one name."""

    name: str
    epoch: int
    source: str
    completions: list[Found] = field(default_factory=list)

    def numbers(self) -> tuple[Any, ...]:
        """Count, known rewards, right ones, lowest, highest and mean reward, mean length, outcome."""
        rewards = [one.reward for one in self.completions if one.reward is not None]
        lengths = [one.length for one in self.completions if one.length is not None]
        rights = sum(one.right for one in self.completions if one.reward is not None)
        mean = sum(rewards) / len(rewards) if rewards else None
        return (
            len(self.completions),
            len(rewards),
            rights,
            min(rewards, default=None),
            max(rewards, default=None),
            mean,
            sum(lengths) / len(lengths) if lengths else None,
            outcome(rewards, rights),
        )


@dataclass
class Scan:
    """What a file holds; `broken` counts lines that cannot be read."""

    groups: list[FoundGroup]
    broken: int


def scan(path: Path) -> Scan:
    """Reads a file once, a line at a time. Raises OSError."""
    groups: list[FoundGroup] = []
    broken = 0
    before: Line | None = None
    for place, (offset, raw) in enumerate(lines_of(path)):
        line = _decode(raw, place)
        if line is None:
            broken += bool(raw.strip())
            continue
        if before is None or _begins_group(before, line):
            groups.append(FoundGroup(_name(line, place), line.epoch or 0, line.source or ""))
        group = groups[-1]
        reward = number(line.reward)
        group.completions.append(
            Found(
                offset,
                len(raw),
                line.index if line.index is not None else len(group.completions),
                reward,
                number(line.advantage),
                line.stop_reason or "",
                line.length,
                is_right(line.reward_parts, reward),
                bool(line.left_out),
                largest_gap(line.tokens),
            )
        )
        before = line
    return Scan(groups, broken)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its offset in bytes, also one without an end."""
    with path.open("rb") as file:
        offset = 0
        for line in file:
            yield offset, line
            offset += len(line)


def read_at(path: Path, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The lines at these offsets and sizes, in bytes, one after another. Raises OSError.

    Not by mmap: a file that somebody cuts meanwhile would end this process.
    """
    with path.open("rb") as file:
        for offset, size in places:
            file.seek(offset)
            yield file.read(size)


def _decode(raw: bytes, place: int) -> Line | None:
    if len(raw) > LONGEST_LINE:
        return None
    try:
        line = DECODER.decode(raw)
        if line.group is not None:  # else it may be a row of `shoal score`
            return line
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    row = read_line(raw)
    if row is None:
        return None
    row = normal(row, place)
    return _loosely(row)


def _loosely(row: dict[str, Any]) -> Line:
    """A line with whatever of it has the right type."""

    def whole(value: Any) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None

    def text(value: Any) -> str | None:
        return None if value is None else str(value).encode("utf-8", "replace").decode()

    parts = row.get("reward_parts")
    return Line(
        group=text(row.get("group")),
        epoch=whole(row.get("epoch")),
        index=whole(row.get("index")),
        source=text(row.get("source")),
        reward=number(row.get("reward")),
        reward_parts={str(key): number(part) for key, part in parts.items()} if isinstance(parts, dict) else None,
        advantage=number(row.get("advantage")),
        stop_reason=text(row.get("stop_reason")),
        length=whole(row.get("length")),
        left_out=text(row.get("left_out")),
    )


def largest_gap(tokens: Tokens | None) -> float | None:
    """The largest difference between the log-probs of sampler and learner on a trained token."""
    if tokens is None or tokens.sampler is None or tokens.learner is None:
        return None
    masks = tokens.mask if tokens.mask is not None else [1] * len(tokens.sampler)
    columns = zip(tokens.sampler, tokens.learner, masks, strict=False)
    gaps = [abs(b - a) for a, b, mask in columns if mask and a is not None and b is not None]
    return max(gaps, default=None)


def _begins_group(before: Line, line: Line) -> bool:
    if line.group is None or (line.group, line.epoch) != (before.group, before.epoch):
        return True
    # One prompt drawn twice in a row: the count begins again.
    return line.index is not None and before.index is not None and line.index <= before.index


def _name(line: Line, place: int) -> str:
    return str(line.group) if line.group is not None else f"line {place + 1}"
