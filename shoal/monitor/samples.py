"""samples/step_N.jsonl and evaluations/step_N.jsonl: every completion, for people to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, groupby
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any

from shoal.files import write_atomically
from shoal.monitor.tokens import token_columns
from shoal.types import Completion, Group, Prompt

SAMPLES, EVALUATIONS = "samples", "evaluations"

Decode = Callable[[list[int]], str]
LearnerLogprobs = Sequence[Sequence[Sequence[float]]]
"""Log-probs of the learner when the step began: one list a completion, over all groups in order, of one a segment."""


class SampleFiles:
    """The folder `samples/` of a run, or `evaluations/`."""

    def __init__(self, run_dir: Path, name: str = SAMPLES) -> None:
        self.folder = run_dir / name

    def write(
        self,
        step: int,
        groups: Sequence[Group],
        decode: Decode | None,
        left_out: Mapping[int, str] | None = None,
        learner: LearnerLogprobs | None = None,
        *,
        tokens: bool = False,
    ) -> Path:
        """One line a completion, in the groups' order; the whole file appears at once. See `sample_rows`."""
        path = self.folder / f"step_{step}.jsonl"
        write_samples(path, groups, decode, left_out, learner, tokens=tokens)
        return path

    def drop_after(self, step: int) -> None:
        """Removes the files of later steps, which a resumed run will do again."""
        for path in self.folder.glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()


def write_samples(
    path: Path,
    groups: Sequence[Group],
    decode: Decode | None,
    left_out: Mapping[int, str] | None = None,
    learner: LearnerLogprobs | None = None,
    *,
    tokens: bool = False,
) -> None:
    """One line a completion, in the groups' order; the whole file appears at once. See `sample_rows`."""
    rows = sample_rows(groups, decode, left_out, learner, tokens=tokens)
    # A lone surrogate, which a model can be made to write, has no UTF-8.
    lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n" for row in rows]
    write_atomically(path, "".join(lines), durable=False)


def sample_rows(
    groups: Sequence[Group],
    decode: Decode | None,
    left_out: Mapping[int, str] | None = None,
    learner: LearnerLogprobs | None = None,
    *,
    tokens: bool = False,
) -> Iterator[dict[str, Any]]:
    """One JSON-ready row a completion. `length` counts sampled tokens; `versions` are (first token, weights) runs.

    Where there is something to say: `messages`, the prompt's, in the first row of a group; `turns`, who said what,
    where not every token is the model's; `info`, what verifiers, tools and environments added; `left_out`, why it was
    not trained on, by its index over all groups; `tokens`, where `learner` is given
    or `tokens` asks for them: see `token_columns`.
    """
    place = count()
    for group in groups:
        prompt = prompt_text(group.prompt, decode)
        for index, completion in enumerate(group.completions):
            row: dict[str, Any] = {
                "group": group.id,
                "epoch": group.epoch,
                "index": index,
                "source": group.prompt.source if group.prompt else None,
                "prompt": prompt,
                "text": completion.text or _sampled_text(completion, decode),
                "ground_truth": group.prompt.ground_truth if group.prompt else None,
                "reward": completion.reward,
                "reward_parts": completion.reward_parts,
                "penalties": completion.penalties,
                "advantage": completion.advantage,
                "stop_reason": completion.stop_reason.value,
                "length": completion.num_sampled,
                "versions": completion.versions,
            }
            if group.prompt and group.prompt.messages and index == 0:
                row["messages"] = plain(group.prompt.messages)
            if decode is not None and has_turns(completion):
                row["turns"] = turns(completion, decode)
            if completion.info:
                row["info"] = plain(completion.info)
            number = next(place)
            if left_out and number in left_out:
                row["left_out"] = left_out[number]
            if tokens or learner is not None:
                row["tokens"] = token_columns(completion, learner[number] if learner is not None else None, decode)
            yield row


def has_turns(completion: Completion) -> bool:
    """Whether somebody else spoke between the model's words."""
    return len(completion.segments) > 1 or not all(map(all, (segment.mask for segment in completion.segments)))


def turns(completion: Completion, decode: Decode) -> list[dict[str, str]]:
    """Runs of trained tokens (`assistant`) and of others (`environment`: what tools and others said), in their order;
    before a later segment, what it was sampled after (`context`)."""
    made: list[dict[str, str]] = []
    for number, segment in enumerate(completion.segments):
        if number:
            made.append({"role": "context", "content": decode(segment.context_ids)})
        for trained, run in groupby(zip(segment.mask, segment.sampled_ids, strict=True), key=itemgetter(0)):
            role = "assistant" if trained else "environment"
            made.append({"role": role, "content": decode([id_ for _, id_ in run])})
    return made


def _sampled_text(completion: Completion, decode: Decode | None) -> str:
    """For environments that send tokens alone."""
    return "" if decode is None else "".join(decode(segment.sampled_ids) for segment in completion.segments)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: what an environment put there may be anything."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def prompt_text(prompt: Prompt | None, decode: Decode | None) -> str | None:
    """The prompt as the model saw it, or its last message where there is nothing to decode with."""
    if prompt is None:
        return None
    if decode is not None:
        return decode(prompt.token_ids)
    return str(prompt.messages[-1]["content"]) if prompt.messages else None


def question(prompt: Prompt | None, decode: Decode | None) -> str | None:
    """What the last user message asks; a long system prompt before it says nothing of the completion."""
    asked = [message.get("content") for message in (prompt.messages if prompt else []) if message["role"] == "user"]
    return asked[-1] if asked and isinstance(asked[-1], str) else prompt_text(prompt, decode)
