"""Asking a `shoal serve code` to run a program."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import SandboxError, Status, TestResult, Tests

TOKEN_VARIABLE = "SHOAL_CODE_TOKEN"
BUSY = 503
WAIT_SECONDS = 60.0  # for a place in the server's queue, and for an answer beyond the program's own time
ASK_AGAIN = 0.2

# Programs are not to leave through a proxy that is set for other things.
_opener = build_opener(ProxyHandler({}))


def run_there(
    url: str, program: str, tests: Tests, limits: Limits, *, total_seconds: float, tier: str = "bubblewrap"
) -> list[TestResult]:
    """As `Sandbox.run`; a server of a weaker tier than `tier` refuses. A token is taken from SHOAL_CODE_TOKEN in the
    environment.

    Raises:
        SandboxError: the server cannot be reached, has no place in time, or failed.
    """
    content = {
        "program": program,
        "tests": tests.to_json(),
        "limits": asdict(limits),
        "total_seconds": total_seconds,
        "tier": tier,
    }
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN_VARIABLE):
        headers["Authorization"] = f"Bearer {token}"
    request = Request(url.rstrip("/") + "/run", json.dumps(content).encode(), headers)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with _opener.open(request, timeout=total_seconds + WAIT_SECONDS) as reply:
                results = json.load(reply)["results"]
            return [TestResult(Status(row["status"]), row["seconds"], row["detail"]) for row in results]
        except HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            if error.code != BUSY or time.monotonic() > deadline:
                raise SandboxError(f"the code server at {url} answers {error.code}: {said}") from error
        except (URLError, HTTPException, OSError, ValueError, KeyError) as error:
            raise SandboxError(f"the code server at {url} cannot be asked: {error}") from error
        time.sleep(ASK_AGAIN)
