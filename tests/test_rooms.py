"""Who may import whom under shoal/: DESIGN.md's order of rooms, read from the source."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEVELS = (
    "errors",
    "child_process files http hub imports loop_thread network",
    "config types",
    "devices run_folder runtime slurm",
    "algorithms models rewards tasks",
    "engines wire",
    "learners references rollout",
    "weight_sync",
    "monitor",
    "training",
    "cluster rollout_api view",
    "build engine_process",
    "api",
    "cli shoal",
)
"""Rooms and single files, lowest first. A room may import from its own level, in no circle, and from those before."""

NOTHING_ELSE = {
    "algorithms": {"config", "errors", "types"},
    "config": {"errors"},
    "monitor": {"config", "errors", "files", "types"},
    "types": {"errors"},
    "view": {"config", "errors", "files", "monitor", "network", "run_folder"},
}
"""Rooms that import from these alone, whatever else stands before them."""

HEAVY = {"deepspeed", "peft", "ray", "vllm"}
WRAPPERS = {
    "vllm": ("shoal/engines/vllm/inside/",),
    "ray": ("shoal/cluster/",),
    "deepspeed": ("shoal/learners/deepspeed",),
}
"""Packages that only the files beginning so may import at module level."""

LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms.split()}


@dataclass(frozen=True)
class Import:
    """One imported module; `outside` any function, so that it is imported with its file."""

    file: str
    line: int
    module: str
    outside: bool

    @property
    def room(self) -> str:
        return room_of(Path(self.file).with_suffix("").as_posix().replace("/", "."))

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def room_of(module: str) -> str:
    """shoal.engines.base is in engines, shoal.files is files, shoal itself is shoal."""
    parts = [part for part in module.split(".") if part != "__init__"]
    return parts[min(1, len(parts) - 1)]


def imports_of(root: Path) -> list[Import]:
    found = []
    for path in sorted((root / "shoal").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        found += [Import(file, *one) for one in imports_in(ast.parse(path.read_text(encoding="utf-8")), outside=True)]
    return found


def imports_in(node: ast.AST, outside: bool) -> Iterator[tuple[int, str, bool]]:
    """Line, module and whether it is outside functions, of every import below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name, outside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.module is not None and child.level == 0, "imports are absolute here"
            yield child.lineno, child.module, outside
        else:
            yield from imports_in(child, outside and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def wrong_arrows(imports: list[Import]) -> list[Import]:
    """Imports that run up the order, or out of what a room is kept to."""
    found = []
    for one in imports:
        if not one.module.startswith("shoal"):
            continue
        room, target = one.room, room_of(one.module)
        narrow = NOTHING_ELSE.get(room)
        if target != room and (LEVEL_OF[target] > LEVEL_OF[room] or (narrow is not None and target not in narrow)):
            found.append(one)
    return found


def circle(imports: list[Import]) -> list[str]:
    """Rooms that import each other in a ring; empty where there are none."""
    below: dict[str, set[str]] = defaultdict(set)
    for one in imports:
        if one.module.startswith("shoal") and room_of(one.module) != one.room:
            below[one.room].add(room_of(one.module))
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(ROOT)


def test_every_room_has_its_place_in_the_order(imports: list[Import]) -> None:
    assert {one.room for one in imports} - set(LEVEL_OF) == set(), "add it to LEVELS, where DESIGN.md has it"


def test_no_import_runs_up_the_order(imports: list[Import]) -> None:
    assert [str(one) for one in wrong_arrows(imports)] == []


def test_weight_syncs_know_no_vllm(imports: list[Import]) -> None:
    assert [
        str(one) for one in imports if one.room == "weight_sync" and one.module.startswith("shoal.engines.vllm")
    ] == []


def test_no_rooms_import_each_other_in_a_circle(imports: list[Import]) -> None:
    assert circle(imports) == []


def test_optional_packages_are_imported_where_they_are_needed(imports: list[Import]) -> None:
    found = [
        str(one)
        for one in imports
        if (package := one.module.partition(".")[0]) in HEAVY
        and one.outside
        and not one.file.startswith(WRAPPERS.get(package, ()))
    ]
    assert found == []


def test_the_configuration_and_what_travels_need_no_torch(imports: list[Import]) -> None:
    light = {"config", "errors", "files", "types"}
    heavy = {"datasets", "torch", "transformers", *HEAVY}
    assert [str(one) for one in imports if one.room in light and one.module.partition(".")[0] in heavy] == []


def test_every_module_that_is_imported_exists(imports: list[Import]) -> None:
    """Imports inside functions too, which no type checker and no test of another path would find."""
    ours = {one for one in imports if one.module.partition(".")[0] == "shoal"}
    paths = {one: ROOT / one.module.replace(".", "/") for one in ours}
    assert [str(one) for one, path in paths.items() if not (path.with_suffix(".py").is_file() or path.is_dir())] == []


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("engines/base.py", "from shoal.learners.model import Policy", True),
        ("engines/base.py", "def late():\n    import shoal.training.loop", True),
        ("engines/base.py", "if TYPE_CHECKING:\n    from shoal.cli.command import main", True),
        ("monitor/rows.py", "from shoal.engines.base import Engine", True),
        ("config/keys.py", "from shoal.files import write_atomically", True),
        ("learners/local.py", "from shoal.engines.base import Engine", False),
        ("tasks/dataset.py", "from shoal.rewards.base import Verifier", False),
        ("__init__.py", "from shoal.api import train", False),
    ],
)
def test_an_arrow_that_runs_up_is_found(tmp_path: Path, file: str, text: str, found: bool) -> None:
    path = tmp_path / "shoal" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert bool(wrong_arrows(imports_of(tmp_path))) is found


def test_a_circle_within_a_level_is_found(tmp_path: Path) -> None:
    for room, other in (("rewards", "tasks"), ("tasks", "models"), ("models", "rewards")):
        (tmp_path / "shoal" / room).mkdir(parents=True)
        (tmp_path / "shoal" / room / "base.py").write_text(f"import shoal.{other}.base")
    assert set(circle(imports_of(tmp_path))) == {"rewards", "tasks", "models"}
