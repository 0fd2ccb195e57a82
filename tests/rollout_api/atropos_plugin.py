"""A pytest plugin that points atroposlib's HTTP tests at another server: `pytest -p atropos_plugin --pyargs ...`.

SHOAL_TEST_API_URL is that server. The tests call localhost:8000 and start a server of their own: the first is
rewritten, the second becomes a process that sleeps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import requests

WRITTEN = "http://localhost:8000"
plain_request = requests.Session.request
plain_popen = subprocess.Popen


def redirected(self: requests.Session, method: str, url: str, *arguments: Any, **options: Any) -> requests.Response:
    """The same request, to the server under test."""
    return plain_request(self, method, url.replace(WRITTEN, os.environ["SHOAL_TEST_API_URL"], 1), *arguments, **options)


class SleepingServer(plain_popen):  # type: ignore[misc,valid-type]
    """Starts a sleeper where atroposlib's server was asked for."""

    def __init__(self, command: Any, *arguments: Any, **options: Any) -> None:
        if "atroposlib.cli.run_api" in command:
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
        super().__init__(command, *arguments, **options)


requests.Session.request = redirected  # type: ignore[method-assign,assignment]
subprocess.Popen = SleepingServer  # type: ignore[misc]
