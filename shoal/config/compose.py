"""From a preset's name and overrides to a checked `ShoalConfig`, by Hydra. Hydra's own messages stay inside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from shoal.config.keys import all_keys, holder_of, nearest, unknown_key
from shoal.config.overrides import GROUPS, check_overrides, parse_overrides
from shoal.config.root import ShoalConfig
from shoal.config.validate import validate
from shoal.errors import ConfigError

PRESETS = Path(__file__).parent / "presets"

INTERPOLATION = re.compile(r"(\\*)\$\{")

ConfigStore.instance().store(name="shoal_config", node=ShoalConfig, provider="shoal")
OmegaConf.register_new_resolver("share_of", lambda share, whole: round(share * whole), replace=True)


def load_config(
    name: str = "story", overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> ShoalConfig:
    """The configuration of a preset (story, gsm8k, or NAME.yaml in `config_dir`) with overrides as on the command line.

    Example: load_config("gsm8k", ["algorithm=dapo", "optimizer.lr=2e-5"]).

    Raises:
        ConfigError: one line on what is unknown, of the wrong type, or impossible together.
    """
    return to_config(compose_config(name, check_overrides(overrides), search_folder(config_dir)))


def search_folder(config_dir: str | Path | None) -> Path:
    """The folder that presets are looked for in first; Shoal's own come after it."""
    folder = PRESETS if config_dir is None else Path(config_dir).absolute()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    return folder


def preset_names(folder: Path, group: str = "") -> list[str]:
    """Names that can be chosen: of presets, or of a group's files."""
    files = [*(folder / group).glob("*.yaml"), *(PRESETS / group).glob("*.yaml")]
    return sorted({file.stem for file in files if not file.stem.startswith("_")})


def compose_config(name: str, overrides: Sequence[str], folder: Path) -> DictConfig:
    """Hydra's composition. `overrides` come from `check_overrides`."""
    if name not in preset_names(folder):
        raise ConfigError(_no_choice(f"preset {name!r}", name, preset_names(folder)))
    for override in parse_overrides(overrides):
        _check_group_choice(override.key_or_group, override.value(), folder)
    with hydra_app(name, folder) as settings, one_line_errors(folder):
        return compose(name, [*overrides, *settings])


@contextmanager
def hydra_app(name: str, folder: Path) -> Iterator[list[str]]:
    """Hydra started on the folder that holds the preset; gives overrides that add the other folder."""
    home, other = (folder, PRESETS) if (folder / f"{name}.yaml").is_file() else (PRESETS, folder)
    with initialize_config_dir(str(home), job_name="shoal", version_base="1.3"):
        yield [f"hydra.searchpath=['file://{other}']"]


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turns what Hydra, OmegaConf and the YAML reader raise into a ConfigError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(_one_line(error, folder)) from error


def to_config(composed: DictConfig) -> ShoalConfig:
    """Checks types, keys and combinations; gives real dataclasses.

    Raises:
        ConfigError: as `load_config`.
    """
    with one_line_errors(PRESETS):
        plain = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(plain, dict)
        _refuse_missing(plain, "")
        for key in all_keys().values():
            if key.node and "." not in key.name and not isinstance(plain.get(key.name, {}), dict):
                raise ConfigError(f"{key.name}: {plain[key.name]!r} is not {key.wanted}")
        # Merging resolves once more: a text that may hold ${x} by now holds it for the model.
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ShoalConfig), escaped(plain)))
    assert isinstance(config, ShoalConfig)
    validate(config)
    return config


def _refuse_missing(value: Any, name: str) -> None:
    if value == "???":
        raise ConfigError(f"{name}=???: give it a value")
    if isinstance(value, dict):
        for key, entry in value.items():
            _refuse_missing(entry, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for entry in value:
            _refuse_missing(entry, name)


def escaped(value: Any) -> Any:
    """The same values with every `${` in texts escaped, so that OmegaConf reads them back as they are."""
    if isinstance(value, dict):
        return {name: escaped(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [escaped(entry) for entry in value]
    return INTERPOLATION.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def _check_group_choice(group: str, choice: Any, folder: Path) -> None:
    if group in GROUPS and not (isinstance(choice, str) and choice in preset_names(folder, group)):
        raise ConfigError(_no_choice(f"{group}={choice}", str(choice), preset_names(folder, group)))


def _no_choice(what: str, given: str, names: Sequence[str]) -> str:
    return f"there is no {what}; the nearest is {nearest(given, names)!r} (there are: {', '.join(names)})"


def _one_line(error: Exception, folder: Path) -> str:
    """What Hydra, OmegaConf or the YAML reader complains about, in Shoal's words."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(cause)
    place = re.match(r"In '([^']+)': ", str(error))
    where = f"in {place[1]}.yaml: " if place and not place[1].startswith(("_", "hydra/")) else ""
    missing = re.search(r"Could not find '(.+)/([^'/]+)'", text)
    if missing:
        group, choice = missing.groups()
        available = text.partition("Available options in")[2].partition("Config search path")[0].split()[1:]
        return where + _no_choice(f"{group}={choice}", choice, available or preset_names(folder, group))
    found = re.search(r"full_key: (\S+)", text)
    if found is None:
        return where + " ".join(text.partition("\nSee http")[0].split())
    name = re.sub(r"\[.*", "", found[1])
    key, holder = all_keys().get(name), holder_of(name)
    if key is not None:
        wanted = key.wanted
    elif holder is not None:
        wanted = holder.entry_wanted
    else:
        return where + unknown_key(name)
    if "nterpolation" in text:
        return f"{where}{name}: {text.splitlines()[0]}"
    given = re.search(r"Value '(.*)' (?:of type|is not)", text)
    if given is not None:
        value = repr(given[1])
    elif "not Optional" in text:
        value = "null"
    else:
        value = repr(getattr(cause, "value", None) or "the value")
    return f"{where}{name}: {value} is not {wanted}"
