"""Code of the user's own, named by its import path: package.module:name."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from shoal.errors import ConfigError


def import_named(path: str, what: str) -> Any:
    """The object at `package.module:name`; `what` says in an error what was looked for.

    Modules are also looked for in the working folder, after all other places, so that it hides none of them.

    Raises:
        ConfigError: the module cannot be imported, or has no such name; the line gives the nearest.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what} {path!r}: {module_name} cannot be imported ({reason})") from error
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        nearest = get_close_matches(name, names, n=1, cutoff=0)
        hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
        raise ConfigError(f"{what} {path!r}: {module_name} has no {name!r}{hint}")
    return getattr(module, name)
