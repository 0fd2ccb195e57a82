"""Where a run writes, what it writes there of its configuration, and which run to go on with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from itertools import count
from pathlib import Path
from shutil import rmtree

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from shoal.config.compose import compose_config, escaped, to_config
from shoal.config.keys import all_keys
from shoal.config.nodes.run import RunConfig
from shoal.config.overrides import GROUPS, check_overrides, overridden, parse_overrides
from shoal.config.resume import refuse_changes
from shoal.config.root import ShoalConfig
from shoal.errors import ConfigError, DataError, StartRefused
from shoal.files import write_atomically

SAVED = Path(".hydra/config.yaml")
SAVED_OVERRIDES = Path(".hydra/overrides.yaml")
SAVED_HYDRA = Path(".hydra/hydra.yaml")


def new_run_folder(config: ShoalConfig) -> Path:
    """`run.root/run.name`, or `run.root/YYYY-MM-DD/HH-MM-SS` (with a number where two runs start in one second).

    Raises:
        ConfigError: a run of that name exists.
    """
    return _free_folder(Path(config.run.root), config.run.name)


def new_sweep_folder(config: ShoalConfig) -> Path:
    """The same for a sweep, in `multirun` beside `run.root`."""
    return _free_folder(Path(config.run.root).parent / "multirun", config.run.name)


def _free_folder(root: Path, name: str | None) -> Path:
    if name is not None:
        folder = root / name
        if folder.exists() and not _never_began(folder):
            other = f"go on with that run by resume={folder}" if has_checkpoint(folder) else "remove that folder"
            raise ConfigError(f"{folder} exists: choose another run.name, or {other}")
        return folder
    stamp = root / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    if not stamp.exists():
        return stamp
    return next(path for n in count(2) if not (path := stamp.with_name(f"{stamp.name}_{n}")).exists())


def _never_began(folder: Path) -> bool:
    """True where a start was killed before its configuration was written: there is half of that at most."""
    return not (folder / SAVED).exists() and {path.name for path in folder.iterdir()} <= {SAVED.parent.name}


@contextmanager
def gone_if_refused(folder: Path, root: Path) -> Iterator[None]:
    """Takes a folder away that the block made, where bad input or the start-up check ends it before the first row."""
    try:
        folder.mkdir(parents=True)
        made_here = True
    except FileExistsError:
        made_here = False
    try:
        yield
    except (ConfigError, DataError, StartRefused):
        if made_here and not (folder / "metrics.jsonl").exists():
            remove_unused(folder, root)
        raise


def remove_unused(folder: Path, root: Path) -> None:
    """Takes away the folder of a run that never began, and the folders above it, up to `root`, that it leaves empty."""
    rmtree(folder)
    for parent in folder.parents:
        if not parent.is_relative_to(root) or any(parent.iterdir()):
            return
        parent.rmdir()


def save_config(config: ShoalConfig, overrides: Sequence[str], folder: Path, preset: str | None = None) -> None:
    """Writes the resolved configuration to `folder/.hydra/`, with the overrides and the preset that made it.

    In a sweep Hydra itself writes what it knows of the preset: then `preset` is None.
    """
    values = {**asdict(config), "resume": None}
    write_atomically(folder / SAVED, OmegaConf.to_yaml(OmegaConf.create(escaped(values))))
    write_atomically(folder / SAVED_OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(escaped(list(overrides)))))
    if preset is not None:
        write_atomically(folder / SAVED_HYDRA, OmegaConf.to_yaml({"hydra": {"job": {"config_name": preset}}}))


def load_saved(folder: Path, overrides: Sequence[str] = ()) -> ShoalConfig:
    """The configuration that a run folder holds, with further overrides.

    A group that the run was started with may be named again; another choice is refused, because the saved values
    are the run's own.

    Raises:
        ConfigError: the folder holds no run, or as `load_config`.
    """
    if not (folder / SAVED).is_file():
        raise ConfigError(f"{folder} is no run folder: there is no {SAVED} in it")
    saved = _read_yaml(folder / SAVED)
    if not isinstance(saved, DictConfig) or not saved:
        raise ConfigError(f"{folder / SAVED} is damaged: it should hold the run's configuration")
    known = saved_overrides(folder)
    kept = []
    for text, override in zip(overrides, parse_overrides(overrides), strict=True):
        if override.key_or_group not in GROUPS:
            kept.append(text)
        elif text not in known:
            raise ConfigError(
                f"{text!r}: the run in {folder} has its own {override.key_or_group}; "
                f"override single keys, such as {_first_key(override.key_or_group)}"
            )
    checked = ["++" + text.lstrip("+") for text in check_overrides(kept)]
    return to_config(compose_config("config", checked, (folder / SAVED).parent.absolute()))


def saved_overrides(folder: Path) -> list[str]:
    """The overrides that a run was started with."""
    file = folder / SAVED_OVERRIDES
    if not file.is_file():
        return []
    texts = _read_yaml(file)
    if not isinstance(texts, ListConfig) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{file} is damaged: it should be a list of overrides; remove it to do without")
    return [str(text) for text in texts]


def saved_preset(folder: Path) -> str | None:
    """The preset that a run was started from, where its folder says so."""
    file = folder / SAVED_HYDRA
    return OmegaConf.select(_read_yaml(file), "hydra.job.config_name") if file.is_file() else None


def _read_yaml(file: Path) -> DictConfig | ListConfig:
    try:
        return OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error


def _first_key(node: str) -> str:
    return next(name for name in all_keys() if name.startswith(node + "."))


def open_run(where: str, overrides: Sequence[str] = ()) -> tuple[ShoalConfig, Path]:
    """The configuration and the folder to go on with: what `resume=where` with further overrides means.

    Raises:
        ConfigError: as `find_resume` and `load_saved`, or a key is overridden that cannot change on resume.
    """
    root = Path(str(overridden(overrides).get("run.root", RunConfig().root)))
    folder = find_resume(where, root)
    if where == "latest":  # the root has said where to look
        pairs = zip(overrides, parse_overrides(overrides), strict=True)
        overrides = [text for text, override in pairs if override.key_or_group != "run.root"]
    config = load_saved(folder, overrides)
    if has_checkpoint(folder):
        refuse_changes(load_saved(folder), config, folder)
    config.resume = str(folder) if where == "latest" else str(Path(where))
    return config, folder


def find_resume(where: str, root: Path) -> Path:
    """The run folder that `resume=where` means: a run folder, one of its checkpoints (RUN/checkpoints/step_N), or
    `latest`, the one under `root` saved last.

    A folder named in full may be without a checkpoint: its run was ended before the first, and starts again.

    Raises:
        ConfigError: there is no such run, or no such checkpoint.
    """
    if where != "latest":
        step = step_named(where)
        folder = Path(where) if step is None else Path(where).absolute().parents[1]
        if not (folder / SAVED).is_file():
            raise ConfigError(f"resume={where}: no run folder (there is no {folder / SAVED})")
        if step is not None and not Path(where).is_dir():
            there = sorted(int(path.name.removeprefix("step_")) for path in folder.glob("checkpoints/step_*"))
            steps = f"there are those of steps {', '.join(map(str, there))}" if there else "there is none yet"
            raise ConfigError(f"resume={where}: the run has no checkpoint of step {step}; {steps}")
        return folder
    found = [path.parent for path in root.glob("**/checkpoints") if has_checkpoint(path.parent)]
    if not found:
        raise ConfigError(f"resume=latest: no run under {root} has a checkpoint")
    return max(found, key=_newest_checkpoint)


def step_named(path: str) -> int | None:
    """The step of a checkpoint's folder, `RUN/checkpoints/step_N`; None for any other path."""
    folder = Path(path)
    number = folder.name.removeprefix("step_")
    return int(number) if folder.parent.name == "checkpoints" and number.isdecimal() else None


def has_checkpoint(folder: Path) -> bool:
    """Whether a complete checkpoint is in a run folder."""
    return any(folder.glob("checkpoints/step_*"))


def _newest_checkpoint(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.glob("checkpoints/step_*"))


def checkpoint_of(where: str) -> tuple[Path, Path] | None:
    """The run folder and the checkpoint that `RUN/checkpoints/step_N` names; None for any other path.

    Raises:
        ConfigError: the run has no such checkpoint.
    """
    checkpoint = Path(where)
    run = checkpoint.parent.parent
    if checkpoint.parent.name != "checkpoints" or not (run / SAVED).is_file():
        return None
    if not checkpoint.is_dir():
        there = sorted(path.name for path in checkpoint.parent.glob("step_*"))
        raise ConfigError(f"{where}: there is no such checkpoint; there are {', '.join(there) or 'none'}")
    return run, checkpoint


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        ConfigError: it has none.
    """
    steps = [path for path in run.glob("checkpoints/step_*") if path.name.removeprefix("step_").isdecimal()]
    if not steps:
        raise ConfigError(f"{run} has no checkpoint")
    return max(steps, key=lambda path: int(path.name.removeprefix("step_")))


def run_folder_of(model: str) -> Path | None:
    """The run folder that a model folder (model/, best/) lies in; None where it lies in none."""
    folder = Path(model).parent
    return folder if (folder / SAVED).is_file() else None
