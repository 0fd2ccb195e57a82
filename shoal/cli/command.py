"""The `shoal` command: verbs to functions."""

from __future__ import annotations

import json
import logging
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from shoal.child_process import end_with_owner
from shoal.cli.serve import add_serve
from shoal.cli.slurm import add_slurm
from shoal.cli.status import add_status
from shoal.cli.view import add_view
from shoal.config import ShoalConfig, load_config
from shoal.config.compose import preset_names, search_folder, to_config
from shoal.config.overrides import GROUPS, check_overrides, overridden, parse_overrides, split_resume
from shoal.config.smoke import shrink
from shoal.config.sweep import check_sweep, collect_runs, format_table, run_sweep
from shoal.errors import ConfigError, DataError, ShoalError
from shoal.files import file_trouble
from shoal.run_folder import (
    checkpoint_of,
    gone_if_refused,
    load_saved,
    new_run_folder,
    new_sweep_folder,
    newest_checkpoint,
    open_run,
    run_folder_of,
    save_config,
    saved_overrides,
    saved_preset,
)

RUN_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status (0, or 1: the run failed, 2: bad input, 130: Ctrl-C)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a plain locale has no letters beyond ASCII
    parser = _parser()
    options, rest = parser.parse_known_args(_join_smoke_steps(given))
    flags = [word for word in rest if word.startswith("-")]
    if flags:
        parser.error(f"unknown option {flags[0]}; `shoal {options.verb} --help` lists them")
    options.overrides = [*options.overrides, *rest]
    set_up_logging(options.log_level)
    if options.verb in ("serve", "env", "view"):
        end_with_owner()  # where a run has started it: then it ends with the run, however that ends
    try:
        return int(options.run(options))
    except (ConfigError, DataError) as error:
        print(f"shoal: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except ShoalError as error:
        print(f"shoal: error: {error}", file=sys.stderr)
        return RUN_FAILED
    except OSError as error:
        trouble = file_trouble(error)
        if trouble is None:
            raise
        logger.debug("what the file system refused:", exc_info=True)
        print(f"shoal: error: {trouble}", file=sys.stderr)
        return RUN_FAILED
    except KeyboardInterrupt:
        print("shoal: interrupted", file=sys.stderr)
        return INTERRUPTED


class LineHandler(logging.Handler):
    """Writes to whatever stderr is at the moment, so that lines go above a live display and not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def set_up_logging(level: str) -> None:
    """Lines on stderr, from Shoal's own loggers only; other libraries' loggers stay as they are, but for two that warn
    of what Shoal does not use whenever they are imported."""
    handler = LineHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("shoal")
    ours.handlers = [handler]
    ours.setLevel(level.upper())
    for name in ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "DeepSpeed"):
        logging.getLogger(name).addFilter(only_errors)


def only_errors(record: logging.LogRecord) -> bool:
    """A filter of log records; levels would be set anew by the import."""
    return record.levelno >= logging.ERROR


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="shoal", description="Group-relative reinforcement learning for language models.")
    parser.add_argument("--version", action="version", version=f"shoal {version('shoal-rl')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    train = _verb(verbs, "train", run_train, "Train a model; without arguments the built-in task, in a few minutes.")
    train.add_argument("--multirun", action="store_true", help="run every combination of the values in key=a,b")
    train.add_argument(
        "--dry-run", action="store_true", help="print configuration, device and memory estimate; start nothing"
    )
    train.add_argument(
        "--smoke-test",
        type=_steps,
        metavar="N",
        help="shrink the run to N steps (2 when left out) that do change weights",
    )
    text = "Evaluate a model or a checkpoint: shoal eval model=DIR."
    evaluation = _verb(verbs, "eval", run_eval, text)
    evaluation.add_argument("--save", metavar="FILE", help="write the completions to FILE, as a run's samples/")
    text = "Make a model folder of a checkpoint (RUN/checkpoints/step_N, or RUN: the newest)."
    export = _verb(verbs, "export", run_export, text, "checkpoint")
    export.add_argument("--output", metavar="DIR", help="where it is written (default: RUN/model_step_N)")
    _verb(verbs, "check", run_check, "Run the start-up check by itself: rewards, log-probs, memory, disk.")
    text = "Run the built-in engine: shoal serve engine model.name=NAME engine.serve_port=9001."
    _verb(add_serve(verbs), "engine", run_serve_engine, text)
    _env(verbs)
    score = _verb(verbs, "score", run_score, "Score the rows of a JSONL file (completion, ground_truth).", "file")
    score.add_argument("--verifier", metavar="NAME", required=True, help="registered name, or package.module:function")
    _data(verbs)
    add_view(verbs)
    add_status(verbs)
    add_slurm(verbs)
    return parser


def _env(verbs: Any) -> None:
    text = "Serve an environment to a trainer, by a server of scored groups; or try it out on an engine."
    env = _verb(verbs, "env", run_env, text, "name")
    env.add_argument("--api", metavar="URL", default="http://127.0.0.1:8000", help="server (default: %(default)s)")
    env.add_argument(
        "--engine",
        metavar="URL",
        default="http://127.0.0.1:9001",
        help="what answers /generate, or an OpenAI API with token ids (its URL ends in /v1) (default: %(default)s)",
    )
    env.add_argument(
        "--mode",
        default="serve",
        choices=("serve", "process", "evaluate"),
        help="serve: until the trainer has had its last step. process: write groups for shoal view. "
        "evaluate: accuracy on held-out prompts",
    )
    env.add_argument("--groups", type=int, default=8, metavar="N", help="groups of --mode process (default: 8)")
    env.add_argument("--output", default=".", metavar="DIR", help="where --mode process writes (default: here)")


def _data(verbs: Any) -> None:
    whats = verbs.add_parser("data", help="Look at the data.").add_subparsers(required=True, metavar="WHAT")
    text = "Show rendered prompts, their lengths and what is left out, source by source; no model is loaded."
    preview = _verb(whats, "preview", run_data_preview, text)
    preview.add_argument("--rows", type=int, default=2, metavar="N", help="prompts shown of each source (default: 2)")


def _verb(verbs: Any, name: str, run: Any, text: str, *arguments: str) -> ArgumentParser:
    groups = "\n".join(f"  {group}={'|'.join(preset_names(search_folder(None), group))}" for group in GROUPS)
    presets = ", ".join(preset_names(search_folder(None)))
    verb: ArgumentParser = verbs.add_parser(
        name,
        allow_abbrev=False,
        help=text,
        description=text,
        formatter_class=RawDescriptionHelpFormatter,
        epilog=f"presets: {presets}\ngroups:\n{groups}\nkeys: docs/options.md, such as optimizer.lr=2e-5 run.steps=200",
    )
    verb.set_defaults(run=run, overrides=[])
    verb.add_argument("--config-name", metavar="NAME", help="preset, or NAME.yaml in --config-dir (default: story)")
    verb.add_argument("--config-dir", metavar="DIR", help="folder with presets and groups of your own")
    verb.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    for argument in arguments:
        verb.add_argument(argument, metavar=argument.upper())
    verb.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", default=SUPPRESS, help="overrides, in Hydra's syntax"
    )
    return verb


def _steps(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise ArgumentTypeError(f"{text} is no number of steps")
    return int(text)


def _join_smoke_steps(words: list[str]) -> list[str]:
    """`--smoke-test` takes a number only where one follows; argparse would take an override for it."""
    joined: list[str] = []
    for word in words:
        if word.isdigit() and joined and joined[-1] == "--smoke-test=2":
            joined[-1] = f"--smoke-test={word}"
        else:
            joined.append("--smoke-test=2" if word == "--smoke-test" else word)
    return joined


def run_train(options: Namespace) -> int:
    """`shoal train`: one run, a sweep, the continuation of a run, or a look at what would run."""
    where, overrides = split_resume(options.overrides)
    if options.multirun:
        if where is not None:
            raise ConfigError("resume goes on with one run: leave --multirun out")
        return _train_sweep(options, overrides)
    if where is not None:
        return _train_resumed(options, where, overrides)
    config = _shrunk(_configured(options, overrides), options.smoke_test, overrides)
    if options.dry_run:
        return _show_plan(config)
    folder = new_run_folder(config)
    with gone_if_refused(folder, Path(config.run.root)):
        save_config(config, overrides, folder, preset=options.config_name or "story")
        from shoal.api import train  # noqa: PLC0415 imports torch, which --help must not wait for

        return _status_of(train(config, folder))


def run_eval(options: Namespace) -> int:
    """`shoal eval`: accuracy of a model on the held-out prompts; a model in a run folder brings its configuration."""
    with TemporaryDirectory(prefix="shoal_model_") as folder:
        config = _of_checkpoint(options, Path(folder)) or _configured(options, options.overrides, near_model=True)
        from shoal.api import evaluate  # noqa: PLC0415 imports torch, which --help must not wait for

        for name, value in evaluate(config, None, save=options.save).items():
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return 0


def _of_checkpoint(options: Namespace, folder: Path) -> ShoalConfig | None:
    """The configuration of the run whose checkpoint `model=` names, with the model that it makes in `folder`; None
    where it names none."""
    model = overridden(options.overrides).get("model.name")
    found = checkpoint_of(str(model)) if model is not None else None
    if found is None:
        return None
    run, checkpoint = found
    parsed = zip(options.overrides, parse_overrides(options.overrides), strict=True)
    others = [text for text, override in parsed if override.key_or_group not in ("model", "model.name")]
    from shoal.training.export import export  # noqa: PLC0415 imports torch, which --help must not wait for

    logger.info("evaluating with the configuration of the run in %s", run)
    config = load_saved(run, others)
    export(config, checkpoint, folder / "model")
    config.model.name, config.model.revision = str(folder / "model"), None
    return config


def run_export(options: Namespace) -> int:
    """`shoal export`: prints the folder of the model."""
    where = Path(options.checkpoint)
    found = checkpoint_of(str(where))
    run, checkpoint = found or (where, newest_checkpoint(where))
    config = load_saved(run, options.overrides)
    from shoal.training.export import export  # noqa: PLC0415 imports torch, which --help must not wait for

    print(export(config, checkpoint, Path(options.output) if options.output else run / f"model_{checkpoint.name}"))
    return 0


def run_check(options: Namespace) -> int:
    """`shoal check`: one line for each part of the start-up check."""
    config = _configured(options, options.overrides)
    from shoal.api import check  # noqa: PLC0415 imports torch, which --help must not wait for

    results = check(config)
    for result in results:
        word = {True: "ok", False: "FAILED", None: "skipped"}[result.ok]
        print(f"{word:<8}{result.name}: {result.detail}")
    return RUN_FAILED if any(result.ok is False for result in results) else 0


def run_serve_engine(options: Namespace) -> int:
    """`shoal serve engine`: serves until Ctrl-C or SIGTERM."""
    config = _configured(options, options.overrides, near_model=True)
    from shoal.rollout_api.environment.serve_engine import serve_engine  # noqa: PLC0415 imports torch, which --help must not wait for

    return serve_engine(config)


def run_env(options: Namespace) -> int:
    """`shoal env`: NAME is a preset, whose data and rewards are served, or a class by its import path."""
    preset = options.config_name or ("story" if ":" in options.name else options.name)
    config = load_config(preset, options.overrides, options.config_dir)
    from shoal.rollout_api.environment import modes as environment_modes  # noqa: PLC0415 imports torch, which --help must not wait for

    if options.mode == "serve":
        environment_modes.serve(options.name, config, options.api, options.engine)
    elif options.mode == "process":
        folder = environment_modes.process(options.name, config, options.engine, options.groups, Path(options.output))
        print(f"shoal view {folder}")
    else:
        for name, value in environment_modes.evaluate(options.name, config, options.engine).items():
            print(f"{name}: {value:.4f}")
    return 0


def run_data_preview(options: Namespace) -> int:
    """`shoal data preview`: what the prompts look like to the model."""
    config = _configured(options, options.overrides)
    from shoal.models.loading import load_tokenizer  # noqa: PLC0415 imports transformers, which --help must not wait for
    from shoal.tasks.preview import preview_lines  # noqa: PLC0415 the same
    from shoal.tasks.story import story_tokenizer  # noqa: PLC0415 the same

    tokenizer = story_tokenizer() if config.model.name == "story" else load_tokenizer(config.model)
    for line in preview_lines(config, tokenizer, options.rows):
        print(line)
    return 0


def run_score(options: Namespace) -> int:
    """`shoal score`: each row with its `score`, as one line of JSON; what is missing says why. Sums go to stderr."""
    config = _configured(options, options.overrides)
    from shoal.rewards.try_out import read_rows, score_rows  # noqa: PLC0415 imports numpy, which --help must not wait for

    rows, report = score_rows(read_rows(Path(options.file)), options.verifier, config.reward)
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))
    for name, value in report.metrics().items():
        logger.info("%s: %.6g", name, value)
    return 0


def _configured(options: Namespace, overrides: Sequence[str], near_model: bool = False) -> ShoalConfig:
    model = overridden(overrides).get("model.name")
    if near_model and options.config_name is None and model is not None:
        folder = run_folder_of(str(model))
        if folder is not None:
            logger.info("evaluating with the configuration of the run in %s", folder)
            return load_saved(folder, overrides)
    return load_config(options.config_name or "story", overrides, options.config_dir)


def _shrunk(config: ShoalConfig, steps: int | None, overrides: Sequence[str]) -> ShoalConfig:
    return config if steps is None else shrink(config, steps, keep=overridden(overrides))


def _train_resumed(options: Namespace, where: str, overrides: Sequence[str]) -> int:
    if options.smoke_test is not None:
        raise ConfigError("resume continues a run unchanged: leave --smoke-test out")
    config, folder = open_run(where, overrides)
    if options.config_name not in (None, saved_preset(folder)):
        raise ConfigError(f"the run in {folder} was not started from {options.config_name}: leave --config-name out")
    if options.dry_run:
        return _show_plan(config)
    save_config(config, [*saved_overrides(folder), *overrides], folder)
    from shoal.api import train  # noqa: PLC0415 imports torch, which --help must not wait for

    return _status_of(train(config, folder))


def _show_plan(config: ShoalConfig) -> int:
    from shoal.cli.dry_run import plan_lines  # noqa: PLC0415 imports torch, which --help must not wait for

    for line in plan_lines(config):
        print(line)
    return 0


def _status_of(summary: dict[str, Any]) -> int:
    return INTERRUPTED if summary["status"] == "stopped" else 0


def _train_sweep(options: Namespace, overrides: Sequence[str]) -> int:
    name, presets = options.config_name or "story", search_folder(options.config_dir)
    checked = check_overrides(overrides, sweep=True)
    planned = check_sweep(name, checked, presets)
    if options.dry_run:
        for combination, config in planned:
            print(f"# {' '.join(combination)}")
            _show_plan(_shrunk(config, options.smoke_test, combination))
        return 0
    folder = new_sweep_folder(planned[0][1])
    job = partial(sweep_job, smoke_steps=options.smoke_test, log_level=options.log_level)
    try:
        run_sweep(name, checked, presets, folder, job)
    finally:
        runs = collect_runs(folder, [combination for combination, _ in planned])
        print(format_table(runs))
    return 0 if all(run.summary for run in runs) else RUN_FAILED


def sweep_job(composed: DictConfig, smoke_steps: int | None, log_level: str) -> None:
    """One run of a sweep, called by Hydra's launcher, perhaps in a process of its own."""
    set_up_logging(log_level)
    folder = Path(HydraConfig.get().runtime.output_dir)
    overrides = list(HydraConfig.get().overrides.task)
    config = _shrunk(to_config(composed), smoke_steps, overrides)
    save_config(config, overrides, folder)
    from shoal.api import train  # noqa: PLC0415 imports torch, which --help must not wait for

    try:
        status = _status_of(train(config, folder))
    except ShoalError as error:
        # The other runs go on; the table and the exit status tell of this one.
        logger.error("%s: %s", folder, error)
        return
    if status == INTERRUPTED:
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
