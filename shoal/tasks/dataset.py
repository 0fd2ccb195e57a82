"""From the configuration to a task: rows are read by their layout, rendered, tokenised and filtered."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger

from transformers import PreTrainedTokenizerBase

from shoal.config import ShoalConfig
from shoal.errors import DataError
from shoal.tasks import gsm8k, story
from shoal.tasks.base import Task
from shoal.tasks.chat import render
from shoal.tasks.layout import Example, Layout
from shoal.types import Prompt

logger = getLogger(__name__)

LAYOUTS: dict[str, Layout] = {"story": story.LAYOUT, "gsm8k": gsm8k.LAYOUT}
"""Data layouts by the name that data.task gives. A new one is a file with a `LAYOUT`, and a line here."""


def build_task(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The prompts to train on and to evaluate on, tokenised for this model.

    Raises:
        DataError: the data cannot be read, or nothing is left of it.
    """
    layout = LAYOUTS[cfg.data.task]
    dropped: dict[str, int] = {}
    sides = [
        _prompts(cfg, tokenizer, layout.examples(cfg.data, evaluation=evaluation), name, dropped)
        for name, evaluation in (("training", False), ("evaluation", True))
    ]
    return Task(
        train=sides[0],
        evaluation=sides[1],
        verifiers=dict(layout.verifiers),
        dropped=dropped,
        demonstrate=layout.demonstrate,
    )


def _prompts(
    cfg: ShoalConfig,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    side: str,
    dropped: dict[str, int],
) -> list[Prompt]:
    limit = cfg.data.max_prompt_tokens
    if not examples:
        raise DataError(f"the {side} data is empty; see data.path and data.split (data.eval_path, data.eval_split)")
    messages = [_messages(example, cfg.data.system_prompt) for example in examples]
    prompts = [
        Prompt(
            id=example.id,
            token_ids=token_ids,
            ground_truth=example.ground_truth,
            verifiers=example.verifiers,
            messages=conversation,
            source=example.source,
        )
        for example, conversation, token_ids in zip(
            examples, messages, render(messages, tokenizer, cfg.model.chat_template_kwargs), strict=True
        )
    ]
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= limit]
    if left_out := len(prompts) - len(kept):
        dropped[f"{side}: longer than {limit} tokens"] = left_out
        logger.warning(
            "%d of %d %s prompts are longer than data.max_prompt_tokens=%d and left out",
            left_out,
            len(prompts),
            side,
            limit,
        )
    if not kept:
        shortest = min(len(prompt.token_ids) for prompt in prompts)
        raise DataError(
            f"all {len(prompts)} {side} prompts are longer than data.max_prompt_tokens={limit} "
            f"(the shortest has {shortest} tokens); raise it"
        )
    return kept


def _messages(example: Example, system_prompt: str | None) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": example.question}]
