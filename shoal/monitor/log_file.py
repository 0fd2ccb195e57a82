"""logs/train.log: what a run has said, with the time of day and a traceback where it ended by an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import ShoalError

LOG_FILE = Path("logs/train.log")

said = logging.getLogger("shoal_said")
"""Takes the lines that the display shows people; they are on the screen already, so that only the file gets them."""
said.propagate = False
said.addHandler(logging.NullHandler())
said.setLevel(logging.INFO)


class RunLogHandler(logging.FileHandler):
    """Loses lines in silence on a full disk: the run itself tells of that, and a traceback a line helps nobody."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing."""


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Appends to the run's log file, inside the context, what Shoal logs and what the display says."""
    file = folder / LOG_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = RunLogHandler(file, encoding="utf-8", delay=False)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    listened = (logging.getLogger("shoal"), said)
    for logger in listened:
        logger.addHandler(handler)
    try:
        yield
    except ShoalError as error:
        said.error("%s", error)
        raise
    except BaseException as error:
        said.error("ended by %s", type(error).__name__, exc_info=True)
        raise
    finally:
        for logger in listened:
            logger.removeHandler(handler)
        handler.close()
