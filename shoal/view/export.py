"""`shoal view --export`: one HTML file that holds a run: the page, its script and the answers that it asks for."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from hashlib import sha256
from logging import getLogger
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shoal.errors import DataError
from shoal.files import write_atomically
from shoal.monitor.samples import EVALUATIONS, SAMPLES
from shoal.view.answers import answer
from shoal.view.app import STATIC, page_template, style_names
from shoal.view.lines import to_json
from shoal.view.runs import Run, Runs

logger = getLogger(__name__)

Place = tuple[int, int]
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (async function|function|const|class) (\w+)", re.MULTILINE)


def export(paths: Sequence[Path], file: Path, groups: int, chosen: Sequence[Place] = ()) -> int:
    """Writes the file; the exit status. Of each run all numbers are in it, the `chosen` groups (step, place) and the
    most telling `groups` others.

    Raises:
        DataError: a path does not exist, there is no run, or no such group.
    """
    runs = Runs(paths)
    found = runs.all()
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no run is in there")
    write_atomically(file, page(runs, groups, chosen))
    logger.info("%s: %s, %.1f MB", file, ", ".join(run.name for run in found), file.stat().st_size / 1e6)
    return 0


def page(runs: Runs, groups: int, chosen: Sequence[Place] = ()) -> str:
    """The whole file."""
    script = (STATIC / "uPlot.iife.min.js").read_text(encoding="utf-8") + "\n" + bundle("main")
    styles = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in style_names())
    # No "</script" and no "<!--" inside the data: as JSON "<" may be written in four digits.
    data = to_json(answers(runs, groups, chosen)).decode().replace("<", "\\u003c")
    given = {
        "policy": policy(script, styles),
        "title": ", ".join(run.name for run in runs.all())[:120],
        "styles": styles,
        "data": data,
        "script": script,
    }
    for name in ("styles", "script"):
        if "</" in given[name] and re.search(r"</(script|style)", given[name], re.IGNORECASE):
            raise ValueError(f"{name} of the page would end early")
    return str(page_template().render(export={name: Markup(text) for name, text in given.items()} | _escaped(given)))


def _escaped(given: dict[str, str]) -> dict[str, Any]:
    return {name: Markup(html.escape(given[name], quote=True)) for name in ("policy", "title")}


def policy(script: str, styles: str) -> str:
    """The content security policy: this script, these styles, and nothing from anywhere."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(styles)}'; img-src data:; base-uri 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode()


def bundle(first: str) -> str:
    """The modules as one script: each a function that gives what it exports, after those that it imports.

    The modules import by name from files beside them, and export functions, constants and classes; nothing else of the
    language of modules is used, which a test sees to.
    """
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"the modules {' -> '.join((*above, name))} import each other")
        if name not in order:
            for _, other in IMPORT.findall(_module(name)):
                visit(other, (*above, name))
            order.append(name)

    visit(first, ())
    return '"use strict";\n' + "\n".join(f"const m_{name} = (() => {{\n{_as_function(name)}\n}})();" for name in order)


def _module(name: str) -> str:
    return (STATIC / f"{name}.js").read_text(encoding="utf-8")


def _as_function(name: str) -> str:
    text = _module(name)
    exports = [match[1] for match in EXPORT.findall(text)]
    body = EXPORT.sub(r"\1 \2", IMPORT.sub(r"const {\1} = m_\2;\n", text))
    return f"{body}\nreturn {{ {', '.join(exports)} }};"


def answers(runs: Runs, groups: int, chosen: Sequence[Place] = ()) -> dict[str, Any]:
    """What the page asks for, by the names that data.js looks for."""
    kept: dict[str, Any] = {"runs": answer(runs, "runs", {})}
    for run in runs.all():
        kept |= _answers_of(runs, run, groups, chosen)
    names = [run.name for run in runs.all()]
    if len(names) > 1:
        kept[key_of("compare", {"runs": "\n".join(names)})] = answer(runs, "compare", {"runs": "\n".join(names)})
    return kept


def _answers_of(runs: Runs, run: Run, groups: int, chosen: Sequence[Place]) -> dict[str, Any]:
    kept: dict[str, Any] = {}

    def keep(name: str, **given: Any) -> Any:
        words = {key: str(value) for key, value in given.items()}
        found = answer(runs, name, {"run": run.name, **words})
        kept[key_of(name, {"run": run.name, **words})] = found
        return found

    while True:
        run.index.update(60.0)
        if not run.index.waiting:
            break
    for name in ("overview", "configuration", "metrics", "evaluations", "rubrics"):
        keep(name)
    for kind in (SAMPLES, EVALUATIONS):
        of_kind = {} if kind == SAMPLES else {"kind": kind}
        keep("steps", **of_kind)
        telling = telling_groups(run, kind, groups if kind == SAMPLES else groups // 2)
        for step, place in sorted({*telling, *(chosen if kind == SAMPLES else ())}):
            keep("group", step=step, group=place, **of_kind)
    return kept


def telling_groups(run: Run, kind: str, count: int) -> list[tuple[int, int]]:
    """(step, place) of the groups that say most: half of them those whose rewards differ most, newest first among
    equals; a quarter those where rewards are missing, or all completions failed; the rest spread over the run."""
    with run.index.lock:

        def chosen(condition: str, order: str, most: int) -> list[tuple[int, int]]:
            rows = run.index.connection.execute(
                f"SELECT step, place FROM groups WHERE kind = ? AND {condition} ORDER BY {order} LIMIT ?", (kind, most)
            )
            return [(step, place) for step, place in rows]

        mixed = chosen("high > low", "(high - low) * min(rights, count - rights) DESC, step DESC, place", count // 2)
        odd = chosen("(known < count OR outcome = 'wrong')", "known - count, step DESC, place", count // 4)
        every = chosen("1", "step, place", -1)
    first = list(dict.fromkeys([*mixed, *odd]))[:count]
    rest = [one for one in every if one not in first]
    wanted = max(count - len(first), 0)
    spread = rest[:: max(len(rest) // max(wanted, 1), 1)][:wanted]
    return sorted([*first, *spread])


def key_of(name: str, given: dict[str, str]) -> str:
    """As `keyOf` in data.js."""
    return "&".join([name, *sorted(f"{key}={value}" for key, value in given.items())])
