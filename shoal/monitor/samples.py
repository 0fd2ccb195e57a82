"""samples/step_N.jsonl: every completion of a step, for people to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.files import write_atomically
from shoal.types import Group, Prompt

Decode = Callable[[list[int]], str]


class SampleFiles:
    """The folder `samples/` of a run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "samples"

    def write(self, step: int, groups: Sequence[Group], decode: Decode | None) -> Path:
        """One line a completion, in the groups' order; the whole file appears at once."""
        path = self.folder / f"step_{step}.jsonl"
        write_samples(path, groups, decode)
        return path

    def drop_after(self, step: int) -> None:
        """Removes the files of later steps, which a resumed run will do again."""
        for path in self.folder.glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()


def write_samples(path: Path, groups: Sequence[Group], decode: Decode | None) -> None:
    """One line a completion, in the groups' order; the whole file appears at once."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sample_rows(groups, decode)]
    write_atomically(path, "".join(lines), durable=False)


def sample_rows(groups: Sequence[Group], decode: Decode | None) -> Iterator[dict[str, Any]]:
    """One JSON-ready row a completion. `length` counts sampled tokens; `versions` are (first token, weights) runs."""
    for group in groups:
        prompt = prompt_text(group.prompt, decode)
        for index, completion in enumerate(group.completions):
            yield {
                "group": group.id,
                "epoch": group.epoch,
                "index": index,
                "source": group.prompt.source if group.prompt else None,
                "prompt": prompt,
                "text": completion.text,
                "ground_truth": group.prompt.ground_truth if group.prompt else None,
                "reward": completion.reward,
                "reward_parts": completion.reward_parts,
                "penalties": completion.penalties,
                "advantage": completion.advantage,
                "stop_reason": completion.stop_reason.value,
                "length": completion.num_sampled,
                "versions": completion.versions,
            }


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
