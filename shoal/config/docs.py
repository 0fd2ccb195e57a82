"""Writes docs/options.md from the dataclasses and the presets: `python -m shoal.config.docs [FILE]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import safe_dump

from shoal.config.compose import PRESETS, preset_names
from shoal.config.keys import Key, all_keys
from shoal.config.overrides import GROUPS

TITLE = """# Options

Every key of the configuration, made from the dataclasses in `shoal/config` by `python -m shoal.config.docs`.
On the command line a key is set by its name: `shoal train optimizer.lr=2e-5 run.steps=200`; a list is
`optimizer.betas=[0.9,0.95]`, nothing is `null`, an entry of a key that holds values by name is
`reward.verifiers.gsm8k=1.0`. With `--multirun`, `optimizer.lr=1e-4,1e-5` tries both.
"""

PRESETS_TEXT = """## Presets

`--config-name NAME` chooses one; `story` is the default. A file of your own in `--config-dir DIR` starts with
`defaults: [story, _self_]` and gives the keys that differ. Keys not listed keep the defaults above.
"""

GROUPS_TEXT = """## Groups

A group's choice sets several keys at once: `algorithm=dapo`. Single keys given besides win over the choice.
"""


def options_page() -> str:
    """The text of docs/options.md."""
    keys = all_keys()
    leaves: dict[str, list[Key]] = {}
    for key in keys.values():
        if not key.node:
            leaves.setdefault(key.name.rpartition(".")[0], []).append(key)
    parts = [TITLE]
    for node, rows in leaves.items():
        parts += [f"## `{node}`\n\n{keys[node].doc}.\n", _table(rows)] if node else [_table(rows)]
    parts.append(PRESETS_TEXT)
    parts += [_yaml_block(f"--config-name {name}", PRESETS / f"{name}.yaml") for name in preset_names(PRESETS)]
    parts.append(GROUPS_TEXT)
    for group in GROUPS:
        choices = preset_names(PRESETS, group)
        parts.append(f"`{group}=`: {', '.join(f'`{choice}`' for choice in choices)}\n")
        # A seam's choice only names its kind; an algorithm's sets keys worth showing.
        if group == "algorithm":
            parts += [_yaml_block(f"algorithm={name}", PRESETS / group / f"{name}.yaml") for name in choices]
    return "\n".join(parts)


def _table(keys: list[Key]) -> str:
    lines = ["| key | type | default | what it does |", "|---|---|---|---|"]
    lines += [f"| `{key.name}` | {_type(key)} | {_default(key)} | {_doc(key)} |" for key in keys]
    return "\n".join(lines) + "\n"


def _type(key: Key) -> str:
    name = key.type.__name__ if type(key.type) is type else str(key.type).replace("typing.", "")
    return f"`{name}`" + (" or null" if key.optional else "")


def _default(key: Key) -> str:
    return f"`{safe_dump(key.default, default_flow_style=True).splitlines()[0]}`"


def _doc(key: Key) -> str:
    values = ""
    if key.choices:
        values = "; one of " + ", ".join(f"`{choice}`" for choice in key.choices)
    elif key.least is not None:
        values = f"; at least {key.least:g}" + ("" if key.most is None else f", at most {key.most:g}")
    return key.doc.replace("|", "\\|") + values


def _yaml_block(title: str, file: Path) -> str:
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    values.pop("defaults", None)
    comment = " ".join(line.lstrip("# ") for line in file.read_text().splitlines() if line.startswith("#"))
    head = f"### `{title}`\n\n" + (f"{comment}\n\n" if comment else "")
    return f"{head}```yaml\n{safe_dump(values, sort_keys=False, width=1000)}```\n"


def main() -> None:
    """Writes the page to the file given, or to docs/options.md of this checkout."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs" / "options.md"
    target.write_text(options_page())


if __name__ == "__main__":
    main()
