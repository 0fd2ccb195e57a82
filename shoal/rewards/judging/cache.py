"""Replies that were paid for once, on disk."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from shoal.errors import ConfigError, TrainingError

FILE = "judge_cache.sqlite"
SECONDS_FOR_LOCK = 30.0


class ReplyCache:
    """Reply by key. Several runs may share a folder; `folder` None keeps replies in memory.

    Raises:
        ConfigError: the file cannot be used. Later, TrainingError: it can no longer be (a full disk, a lock held long).
    """

    def __init__(self, folder: Path | None) -> None:
        self.place = ":memory:"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.place = str(folder / FILE)
        try:
            # A notebook's call runs in another thread than the one that made the scorer, never in two at one time.
            self.connection = sqlite3.connect(
                self.place, timeout=SECONDS_FOR_LOCK, isolation_level=None, check_same_thread=False
            )
            # Whole after the death of the process; a power cut may cost replies, which are then asked for again.
            self.connection.execute("PRAGMA synchronous = OFF")
            self.connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise ConfigError(f"reward.judge.cache: {self.place} cannot be used ({error}); remove it") from error

    def get(self, key: str) -> str | None:
        """The reply, or None where it is not known."""
        found = self._execute("SELECT reply FROM replies WHERE key = ?", key)
        return None if not found else str(found[0][0])

    def put(self, key: str, reply: str) -> None:
        """Keeps a reply; it outlives the process from now on."""
        self._execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, reply)

    def _execute(self, command: str, *values: str) -> list[tuple[str]]:
        try:
            with closing(self.connection.execute(command, values)) as rows:
                return rows.fetchall()
        except sqlite3.Error as error:
            raise TrainingError(f"reward.judge.cache: {self.place} cannot be used any more ({error})") from error

    def close(self) -> None:
        """Closes the file."""
        self.connection.close()
