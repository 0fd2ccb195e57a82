"""From a verifier's name or import path to the verifier, its options, and back to its import path."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any

import shoal.rewards.rubrics.verifier
import shoal.rewards.verifiers.citations
import shoal.rewards.verifiers.code
import shoal.rewards.verifiers.format
import shoal.rewards.verifiers.gsm8k
import shoal.rewards.verifiers.gsm8k_torchrl
import shoal.rewards.verifiers.ifeval
import shoal.rewards.verifiers.json_schema
import shoal.rewards.verifiers.judge
import shoal.rewards.verifiers.length
import shoal.rewards.verifiers.math
import shoal.rewards.verifiers.regex
import shoal.rewards.verifiers.strings
import shoal.rewards.verifiers.text_match  # noqa: F401 - importing a module of verifiers registers them
from shoal.errors import ConfigError
from shoal.imports import import_named
from shoal.rewards.base import REGISTRY, VerifierEntry
from shoal.rewards.judged import JUDGED


def find_verifier(name: str) -> VerifierEntry:
    """The verifier registered under `name`, or the function at `package.module:function`.

    Modules are also looked for in the working folder, after all other places, so that it hides none of them.

    Raises:
        ConfigError: there is none; the line names the nearest registered one. Or an optional package is missing.
    """
    entry = REGISTRY[name] if name in REGISTRY else _imported(name)
    for package, extra in entry.needs.items():
        if find_spec(package) is None:
            raise ConfigError(
                f"verifier {name!r} needs {package}, which is not installed: pip install 'shoal-rl[{extra}]'"
            )
    return entry


def _imported(name: str) -> VerifierEntry:
    if ":" not in name:
        names = sorted({*REGISTRY, *JUDGED})
        nearest = get_close_matches(name, names, n=1, cutoff=0)
        raise ConfigError(
            f"no verifier is named {name!r}; the nearest is {nearest[0]!r}. There are {', '.join(names)}; "
            "your own is named by its import path, package.module:function"
        )
    function = import_named(name, "verifier")
    if not callable(function):
        raise ConfigError(f"verifier {name!r}: {type(function).__name__} is no function")
    registered = (entry for entry in REGISTRY.values() if entry.function is function)
    return next(registered, VerifierEntry(name, function, bounded=False))


def check_options(options: Mapping[str, Any], entries: Mapping[str, VerifierEntry]) -> None:
    """Accepts `reward.options` that the verifiers take.

    Raises:
        ConfigError: options of a verifier that is not asked, or that it does not know.
    """
    for name, given in options.items():
        if name in JUDGED and name not in entries:
            raise ConfigError(f"reward.options.{name}: options of this verifier are in reward.judge and reward.rubric")
        if name not in entries:
            entries = {**entries, name: find_verifier(name)}
        known = [
            key
            for key, value in signature(entries[name].function).parameters.items()
            if value.kind is Parameter.KEYWORD_ONLY
        ]
        for key in given:
            if key not in known:
                there = f"it has {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"reward.options.{name}.{key}: verifier {name!r} has no such option; {there}")


def import_path(entry: VerifierEntry) -> str:
    """Where a worker process finds a verifier.

    Raises:
        ConfigError: it is not a module's function.
    """
    module, name = entry.function.__module__, entry.function.__qualname__
    if module == "__main__" or not name.isidentifier():
        raise ConfigError(
            f"verifier {entry.name!r} runs in a process of its own, which cannot import it from {module}:{name}; "
            "make it a function of a module"
        )
    return f"{module}:{name}"
