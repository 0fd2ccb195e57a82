"""docs/options.md is made from the dataclasses, and every option is read somewhere."""

from __future__ import annotations

import ast
from pathlib import Path

from shoal.config.docs import options_page
from shoal.config.keys import all_keys
from shoal.config.validate import SEAMS

ROOT = Path(__file__).parents[2]


def test_the_options_page_is_current():
    page = (ROOT / "docs" / "options.md").read_text()
    assert page == options_page(), "run `make docs`"


def test_the_options_page_has_every_key_with_its_default_and_values():
    page = options_page()
    for key in all_keys().values():
        assert f"`{key.name}`" in page
    assert "| `optimizer.lr` | `float` | `1.0e-06` | Peak learning rate; at least 0 |" in page
    assert "one of `clip`, `cispo`, `gspo`" in page


def test_every_key_says_what_it_does_in_one_line():
    for key in all_keys().values():
        assert key.doc and "\n" not in key.doc and not key.doc.endswith("."), key.name


def names_in(file: Path) -> tuple[set[str], set[str]]:
    """What a module reads as attributes, and the other names that stand in it."""
    attributes, names = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            attributes.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.name)
    return attributes, names


def test_every_key_is_read_outside_the_configuration():
    modules = [names_in(file) for file in (ROOT / "shoal").rglob("*.py") if file.parent.name != "config"]
    keys = all_keys()

    def is_read(name: str) -> bool:
        # A reader of optimizer.lr has `.lr` on something that comes from `.optimizer` or is an `OptimizerConfig`.
        node, _, leaf = name.rpartition(".")
        last, kind = node.rpartition(".")[2], keys[node].type.__name__ if node else "ShoalConfig"
        return any(leaf in attributes and (last in attributes or kind in names) for attributes, names in modules)

    # These five are handed on together, by vars(cfg.sampling).
    together = {name for name in keys if name.startswith("sampling.")}
    # The kinds of the seams are read by the table of those that go together.
    kinds = {f"{seam}.kind" for seam in SEAMS}
    # The mix is read by data_sources, which hands its entries on.
    mix = {"data.mix"}
    leaves = {name for name, key in keys.items() if not key.node}
    assert sorted(name for name in leaves - together - kinds - mix if not is_read(name)) == []
