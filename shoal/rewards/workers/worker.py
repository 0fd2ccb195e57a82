"""The process in which a verifier runs that might hang, crash or eat memory. Started by `deadline`.

Arguments: the deadline of one verdict in seconds, the memory limit in GiB (0: none), the verifiers' import
paths and the packages that they will import.
Reads one JSON line a submission from stdin, answers each with one JSON line on stdout, ends at the end of stdin.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module

from shoal.child_process import end_with_parent
from shoal.rewards.base import Submission
from shoal.rewards.verdict import judge
from shoal.types import StopReason

READY = {"ready": True}


def main(timeout: float, memory_gib: float, paths: list[str]) -> None:
    """Serves verdicts until stdin ends."""
    end_with_parent()
    # Verifiers may print and read: their stdout becomes stderr, their stdin is empty, and the parent's two are kept.
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    functions = {}
    for path in paths:
        module, _, name = path.partition(":")
        imported = import_module(module)
        if name:
            functions[path] = getattr(imported, name)
    if memory_gib:
        # RLIMIT_DATA counts what is allocated; RLIMIT_AS would count reservations, of which torch makes many.
        limit = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    _reply(replies, READY)
    for line in requests:
        request = json.loads(line)
        row = request["submission"]
        submission = Submission(**{**row, "stop_reason": StopReason(row["stop_reason"])})
        # The parent kills us at the deadline. Should it be dead by then, the kernel does (SIGALRM, unhandled), even
        # while the verifier holds the interpreter.
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 10)
        verdict = judge(functions[request["path"]], submission)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, asdict(verdict))


def _reply(descriptor: int, content: Mapping[str, object]) -> None:
    """One write a line, short enough to be atomic."""
    os.write(descriptor, (json.dumps(content) + "\n").encode())


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
