"""A reward that is slow until the test says `go`, and what the driver sees around it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from shoal import Submission

PLACE = Path(os.environ.get("SHOAL_TEST_FOLDER", "."))
SECONDS = 0.25


def until_go(submission: Submission) -> float:
    """One of the word's two halves is worth something."""
    seen = PLACE / "seen.json"
    if not seen.exists():
        seen.write_text(json.dumps(dict(os.environ)))
    if not (PLACE / "go").exists():
        time.sleep(SECONDS)
    return float(len(submission.text) % 2)


def ends_the_process(submission: Submission) -> float:
    """As if the kernel had killed it."""
    os._exit(9)
