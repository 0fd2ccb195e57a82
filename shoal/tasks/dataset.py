"""From the configuration to a task: rows are read by their layout, rendered, tokenised, filtered and mixed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from logging import getLogger

from transformers import PreTrainedTokenizerBase

from shoal.config import ShoalConfig
from shoal.config.mix import DataSource, data_sources
from shoal.config.nodes.data import DataConfig
from shoal.config.nodes.rubric import asks_rubric
from shoal.errors import ConfigError, DataError
from shoal.models.chat import read_framing, render
from shoal.rewards.base import REGISTRY
from shoal.rewards.judged import JUDGED
from shoal.rewards.lookup import find_verifier
from shoal.rewards.scorer import own_ground_truth
from shoal.tasks import story
from shoal.tasks.base import Task
from shoal.tasks.cache import cache_key, cached
from shoal.tasks.layouts import code, gsm8k, ifeval, math, messages, rlvr
from shoal.tasks.layouts.base import Example, Layout, split_columns
from shoal.tasks.mixer import draw, interleave
from shoal.tasks.rows import check_split, is_single_file, line_of, read_rows
from shoal.types import Prompt

logger = getLogger(__name__)

RUBRIC = "rubric"

LAYOUTS: dict[str, Layout] = {
    "story": story.LAYOUT,
    "gsm8k": gsm8k.LAYOUT,
    "math": math.LAYOUT,
    "ifeval": ifeval.LAYOUT,
    "rlvr": rlvr.LAYOUT,
    "code": code.LAYOUT,
    "messages": messages.LAYOUT,
}
"""Data layouts by the name that data.task gives. A new one is a file with a `LAYOUT`, and a line here."""


@dataclass
class DataSplit:
    """One source's prompts for training or for evaluation: those that are used, and those that are too long."""

    source: DataSource
    evaluation: bool
    used: list[Prompt]
    too_long: list[Prompt]

    @property
    def name(self) -> str:
        return "evaluation" if self.evaluation else "training"


def build_task(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerBase, own_verifiers: Collection[str] = ()) -> Task:
    """The prompts to train on and to evaluate on, tokenised for this model.

    `own_verifiers` names functions that the caller brings. They, or reward.verifiers, judge the prompts that name no
    verifier; without either, those of the prompt's layout do.

    Raises:
        DataError: the data cannot be read, nothing is left of it, or a row names a verifier that there is not.
    """
    return task_of(cfg, read_splits(cfg, tokenizer), own_verifiers)


def task_of(cfg: ShoalConfig, splits: Sequence[DataSplit], own_verifiers: Collection[str] = ()) -> Task:
    """The task that the splits make together; see `build_task`. Prompts whose layouts are judged differently get the
    names of their verifiers.

    Nothing that is configured is left unasked: a verifier of reward.verifiers (or `own_verifiers`) that no row names
    judges the rows that name others, beside these; so does `rubric` where reward.rubric asks for criteria.

    Raises:
        ConfigError: there is no such configured verifier.
        DataError: a row names no verifier that there is.
    """
    sources = data_sources(cfg.data)
    defaults = [LAYOUTS[source.task].verifiers for source in sources]
    configured = list(cfg.reward.verifiers or own_verifiers)
    spellings = {name: _spelling(name, own_verifiers) for name in configured}
    alike = all(verifiers == defaults[0] for verifiers in defaults)
    named = {name for split in splits for prompt in split.used for name in prompt.verifiers}
    beside = [name for name in configured if name not in named and spellings[name] not in named]
    rubric = asks_rubric(cfg.reward.rubric) and not {RUBRIC} & {*configured, *named}
    for split in splits:
        layout = LAYOUTS[split.source.task]
        judged = bool(configured or layout.verifiers or rubric) or not cfg.reward.verify
        _check_verifiers(split, own_verifiers, judged=judged)
        for prompt in split.used:
            if prompt.verifiers:
                prompt.verifiers = [*prompt.verifiers, *beside]
            elif rubric or not (alike or configured):
                prompt.verifiers = list(configured or layout.verifiers)
            if rubric:
                prompt.verifiers = [*prompt.verifiers, RUBRIC]
    train, evaluation = (
        interleave([split.used for split in splits if split.evaluation is wanted]) for wanted in (False, True)
    )
    return Task(
        train=train,
        evaluation=evaluation,
        verifiers=dict(defaults[0]) if alike else {},
        dropped=dropped_counts(cfg, splits),
        demonstrate=_demonstration_for(train[0], sources),
    )


def read_splits(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerBase) -> list[DataSplit]:
    """Every source's training prompts and evaluation prompts, filtered by length, in the asked amounts.

    Which rows of a source are trained on depends on run.seed; which are evaluated on does not, so that accuracies of
    runs with other seeds can be compared.

    Raises:
        DataError: the data cannot be read, or nothing is left of it.
    """
    limit = cfg.data.max_prompt_tokens
    splits = []
    for source in data_sources(cfg.data):
        for evaluation, amount in ((False, source.amount), (True, source.eval_amount)):
            if amount:
                prompts = _tokenised(cfg, tokenizer, source, evaluation)
                fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= limit]
                too_long = [prompt for prompt in prompts if len(prompt.token_ids) > limit]
                split = DataSplit(source, evaluation, fitting, too_long)
                splits.append(split)
                _say_what_is_left(split, limit)
                seed = f"evaluation/{source.name}" if evaluation else f"{cfg.run.seed}/{source.name}"
                split.used = draw(fitting, amount, seed)
    return splits


def dropped_counts(cfg: ShoalConfig, splits: Sequence[DataSplit]) -> dict[str, int]:
    """How many prompts were left out, by source, split and reason."""
    limit = cfg.data.max_prompt_tokens
    return {
        f"{split.source.name}, {split.name}: longer than {limit} tokens": len(split.too_long)
        for split in splits
        if split.too_long
    }


def _tokenised(
    cfg: ShoalConfig, tokenizer: PreTrainedTokenizerBase, source: DataSource, evaluation: bool
) -> list[Prompt]:
    examples, place = _read(source, evaluation)
    framing = read_framing(source.system_prompt, source.instructions)
    for example in examples:
        example.messages = framing.around(example.messages)
    conversations = [example.messages for example in examples]
    kwargs = cfg.model.chat_template_kwargs
    if cfg.data.cache and not LAYOUTS[source.task].make:
        key = cache_key(conversations, tokenizer, kwargs)
        token_ids = cached(key, len(examples), lambda: render(conversations, tokenizer, kwargs))
    else:
        token_ids = render(conversations, tokenizer, kwargs)
    return [
        Prompt(
            id=f"{place}/{index}",
            token_ids=ids,
            ground_truth=example.ground_truth,
            verifiers=list(source.verifiers or example.verifiers),
            messages=example.messages,
            source=source.name,
            columns=example.columns,
        )
        for index, (example, ids) in enumerate(zip(examples, token_ids, strict=True))
    ]


def _read(source: DataSource, evaluation: bool) -> tuple[list[Example], str]:
    """The examples, and what their ids begin with. Ids are numbered by row, so a filter does not change them."""
    layout = LAYOUTS[source.task]
    path: str | None = None
    if layout.make:
        rows = layout.make(evaluation)
        where, place = "built in", f"{source.name}/{'held_out' if evaluation else 'train'}"
    else:
        path, subset, split = _place(source, evaluation)
        if evaluation and not source.eval_path and source.amount and is_single_file(path):
            logger.warning(
                "evaluation uses the training file %s: set data.eval_path to measure on other questions", path
            )
        rows = read_rows(
            path,
            subset=subset,
            revision=source.revision,
            split=split,
            columns=layout.columns,
            optional=layout.optional,
            names=source.columns,
        )
        where = f"{path}, split {split}"
        # The evaluation's ids differ from the training's also if both use the same split.
        place = f"{source.name}/{split}{'_eval' if evaluation and split == source.split else ''}"
    examples = []
    for index, row in enumerate(rows):
        try:
            read, further = (row, {}) if layout.make else split_columns(layout, row, source.columns)
            example = layout.read(read)
            example.columns = further
            examples.append(example)
        except DataError as error:
            raise DataError(f"{where}{line_of(path or '', index)}, row {index}: {error}") from error
    return examples, place


def check_splits(data: DataConfig) -> None:
    """Accepts a configuration whose splits are there, as `check_split` can tell without reading rows.

    Raises:
        DataError: the first that is not, in one line.
    """
    for source in data_sources(data):
        for evaluation, amount in ((False, source.amount), (True, source.eval_amount)):
            if amount and not LAYOUTS[source.task].make:
                path, subset, split = _place(source, evaluation)
                check_split(path, subset=subset, revision=source.revision, split=split)


def _place(source: DataSource, evaluation: bool) -> tuple[str, str | None, str]:
    """Path, subset and split of a source's rows for training or for evaluation."""
    layout = LAYOUTS[source.task]
    split = source.eval_split if evaluation else source.split
    if evaluation and source.eval_path:
        return source.eval_path, source.subset, split
    if source.path is None and layout.hub is None:
        raise DataError(f"data.task={source.task} says how rows look, not where they are: set data.path")
    hub, hub_subset = layout.hub or (None, None)
    path = source.path or str(hub)
    return path, source.subset or (hub_subset if path == hub else None), split


def _say_what_is_left(split: DataSplit, limit: int) -> None:
    left_out, all_of_it = len(split.too_long), len(split.used) + len(split.too_long)
    if not split.used:
        shortest = min(len(prompt.token_ids) for prompt in split.too_long)
        raise DataError(
            f"{split.source.name}: all {all_of_it} {split.name} prompts are longer than data.max_prompt_tokens={limit} "
            f"(the shortest has {shortest} tokens); raise it"
        )
    if left_out:
        logger.warning(
            "%s: %d of %d %s prompts are longer than data.max_prompt_tokens=%d and left out",
            split.source.name,
            left_out,
            all_of_it,
            split.name,
            limit,
        )


def _spelling(name: str, own: Collection[str]) -> str:
    """The name under which a verifier is registered: rows may name one of the user's by that, once it is imported."""
    return name if name in own or name in JUDGED else find_verifier(name).name


def _check_verifiers(split: DataSplit, own: Collection[str], *, judged: bool) -> None:
    """Raises DataError where a prompt has no verifier, or one that there is not: at the start, not when it is drawn."""
    known = {*own, *JUDGED}
    for prompt in split.used:
        if not prompt.verifiers and not judged:
            raise DataError(
                f"prompt {prompt.id} names no verifier: give its row a column `verifiers`, or set data.verifiers or "
                "reward.verifiers"
            )
        for name in prompt.verifiers:
            if name not in known:
                try:
                    find_verifier(name)
                except ConfigError as error:
                    raise DataError(f"prompt {prompt.id}: {error}") from error
                known.add(name)
        _check_ground_truth(split, prompt, own)


def _check_ground_truth(split: DataSplit, prompt: Prompt, own: Collection[str]) -> None:
    """Raises DataError where a verifier of the prompt's row, or else of its layout, cannot read its ground truth."""
    for name in prompt.verifiers or LAYOUTS[split.source.task].verifiers:
        check = None if name in own or name not in REGISTRY else REGISTRY[name].check
        try:
            if check is not None:
                check(own_ground_truth(prompt, name))
        except ValueError as error:
            raise DataError(f"prompt {prompt.id}: the ground truth of {name}: {error}") from error


def _demonstration_for(first: Prompt, sources: Sequence[DataSource]) -> Callable[[Prompt], str] | None:
    """The layout's known-right answer to the first prompt, which the start-up check tries; none where the layout gives
    none, or where other verifiers than the layout's judge its source."""
    source = next(source for source in sources if source.name == first.source)
    return None if source.verifiers else LAYOUTS[source.task].demonstrate
