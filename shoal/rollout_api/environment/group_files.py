"""Groups for people: one JSON line each, as they would be sent, and the samples that `shoal view` shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from shoal.engines.base import SamplingParams
from shoal.files import write_atomically
from shoal.monitor.samples import SampleFiles
from shoal.rollout_api.scored_data import to_scored_data
from shoal.types import Group


def write_groups(
    folder: Path, groups: Sequence[Group], sampling: SamplingParams, decode: Callable[[list[int]], str]
) -> Path:
    """Writes groups.jsonl and samples/step_0.jsonl, with every token, into `folder`; gives the folder."""
    lines = [json.dumps(to_scored_data(group, sampling), ensure_ascii=False) + "\n" for group in groups]
    write_atomically(folder / "groups.jsonl", "".join(lines))
    SampleFiles(folder).write(0, groups, decode, tokens=True)
    return folder
