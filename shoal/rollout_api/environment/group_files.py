"""Groups for people: one JSON line each, as they would be sent, and a page that shows what was made of which tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from shoal.engines.base import SamplingParams
from shoal.files import write_atomically
from shoal.rollout_api.scored_data import to_scored_data
from shoal.types import Completion, Group, Segment

Piece = dict[str, Any]


def write_groups(
    folder: Path, groups: Sequence[Group], sampling: SamplingParams, tokenizer: Any, *, title: str
) -> Path:
    """Writes groups.jsonl and groups.html into `folder`; gives the page's path."""
    lines = [json.dumps(to_scored_data(group, sampling), ensure_ascii=False) + "\n" for group in groups]
    write_atomically(folder / "groups.jsonl", "".join(lines))
    page = folder / "groups.html"
    write_atomically(page, groups_page(groups, tokenizer, title=title))
    return page


def groups_page(groups: Sequence[Group], tokenizer: Any, *, title: str) -> str:
    """A page that needs nothing else: prompts, completions coloured by reward, tokens shaded by whether and how they
    are trained (with their log-probs when pointed at)."""
    known = [reward for group in groups for reward in group.known_rewards]
    low, high = min(known, default=0.0), max(known, default=1.0)
    shown = [
        {
            "id": group.id,
            "prompt": tokenizer.decode(group.prompt.token_ids) if group.prompt else "",
            "ground_truth": group.prompt.ground_truth if group.prompt else None,
            "completions": [_shown(one, tokenizer, low, high) for one in group.completions],
        }
        for group in groups
    ]
    environment = Environment(loader=PackageLoader("shoal.rollout_api"), autoescape=True)
    mean = sum(known) / len(known) if known else None
    return environment.get_template("groups.html.j2").render(title=title, groups=shown, mean=mean, count=len(known))


def _shown(completion: Completion, tokenizer: Any, low: float, high: float) -> dict[str, Any]:
    reward = completion.reward
    share = None if reward is None else (reward - low) / (high - low) if high > low else 1.0
    return {
        "reward": reward,
        "hue": None if share is None else round(120 * share),
        "parts": completion.reward_parts,
        "stop_reason": completion.stop_reason.value,
        "tokens": completion.num_sampled,
        "tools": completion.info.get("tools", []),
        "segments": [_pieces(segment, tokenizer, number) for number, segment in enumerate(completion.segments)],
    }


def _pieces(segment: Segment, tokenizer: Any, number: int) -> list[Piece]:
    """The sampled tokens one by one; before them, in later segments, the context."""
    pieces: list[Piece] = []
    if number:
        pieces.append({"text": tokenizer.decode(segment.context_ids), "kind": "context"})
    for id_, logprob, trained in zip(segment.sampled_ids, segment.logprobs, segment.mask, strict=True):
        kind = "trained" if trained else "masked"
        pieces.append({"text": tokenizer.decode([id_]), "kind": kind, "logprob": logprob if trained else None})
    return pieces
