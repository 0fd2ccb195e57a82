"""The Python that runs the programs, and the folders that it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shoal.errors import ConfigError

GUEST = Path(__file__).parent / "guest"
START = f"import sys; sys.path.insert(0, {str(GUEST)!r}); import start; start.main({str(GUEST)!r})"
ASK = """
import compileall, json, os, sys
compileall.compile_dir(sys.argv[1], quiet=2)  # where that can be written: it halves the start of a guest
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "executable": sys.executable,
    "real": os.path.realpath(sys.executable),
    "prefix": sys.prefix,
    "base_prefix": sys.base_prefix,
}))
"""
SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
OLDEST = [3, 10]


@dataclass(frozen=True)
class Interpreter:
    """`command` starts it without the user's settings. `folders` are the files and folders that it
    reads."""

    command: tuple[str, ...]
    folders: tuple[Path, ...]

    def guest(self, order: str) -> list[str]:
        """The command of a guest. What it runs is imported, not named as a script, since a script is compiled anew."""
        return [*self.command, "-c", START, order]


@cache
def find_interpreter(python: str | None) -> Interpreter:
    """This process's own Python with nothing but the standard library, or the one at `python` with its packages.

    Raises:
        ConfigError: there is none, or it is too old.
    """
    flags = ("-I", "-B", "-X", "utf8")
    try:
        answer = subprocess.run(
            [python or sys.executable, *flags, "-c", ASK, str(GUEST)],
            capture_output=True,
            check=True,
            timeout=60,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"reward.code.python={python}: it does not run ({error}); name a Python 3 program") from error
    facts = json.loads(answer.stdout)
    if facts["version"] < OLDEST:
        raise ConfigError(f"reward.code.python={python}: it is Python {facts['version']}; 3.10 or later is needed")
    base = Path(facts["base_prefix"])
    libraries = () if base == Path("/usr") else (base / "lib", base / "lib64")
    folders = [Path(path) for path in (*SYSTEM_LIBRARIES, *libraries, facts["real"]) if Path(path).exists()]
    if python is None:
        return Interpreter((facts["real"], *flags, "-S"), (*folders, GUEST))
    if facts["prefix"] != facts["base_prefix"]:
        # A virtual environment is found through the path by which its Python is called.
        folders += [Path(facts["prefix"]), *_links(Path(facts["executable"]))]
        return Interpreter((facts["executable"], *flags), (*folders, GUEST))
    return Interpreter((facts["real"], *flags), (*folders, GUEST))


def _links(path: Path) -> list[Path]:
    """The programs that a link leads to, one after the other; those that stand in a folder of their own are needed."""
    found = []
    while path.is_symlink():
        path = path.parent / path.readlink()
        found.append(path)
    return [path for path in found if path.is_file()]
