"""How many small programs a minute each tier runs: `python benchmarks/sandbox.py [--programs N] [--workers N]`."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor

from shoal.errors import ConfigError
from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import Tests
from shoal.rewards.sandbox.tiers import TIERS

KINDS = {
    "3 asserts": (
        "def add(a, b):\n    return a + b\n",
        ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'"],
    ),
    "1 stdin/stdout test": ("print(sum(map(int, input().split())))", [{"input": "1 2 3", "output": "6"}]),
}
SYSTEM_PYTHON = "/usr/bin/python3"
LIMITS = Limits(seconds=30, cpu_seconds=30)


def main() -> None:
    """Prints one line for each tier and kind of tests."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--python", help="Python that runs the programs")
    options = parser.parse_args()
    for tier in TIERS:
        sandbox = open_sandbox(tier, options.python)
        if sandbox is None:
            continue
        for kind, (program, tests) in KINDS.items():
            print(f"{tier}, {kind}: {measure(sandbox, program, tests, options):,.0f} programs/minute")


def open_sandbox(tier: str, python: str | None) -> Sandbox | None:
    """With this Python, or where an unprivileged user cannot reach it with the system's, which is said."""
    for tried in (python,) if python else (None, SYSTEM_PYTHON):
        try:
            sandbox = Sandbox(tier, python=tried)
        except ConfigError as error:
            print(f"{tier}: {error}")
        else:
            if tried != python:
                print(f"{tier}: with {tried}")
            return sandbox
    return None


def measure(sandbox: Sandbox, program: str, tests: list[object], options: object) -> float:
    """Programs per minute, all of them right."""
    count, workers = options.programs, options.workers
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(sandbox.run, program, Tests.from_json(tests), LIMITS) for _ in range(count)]
        assert all(result.passed for job in jobs for result in job.result())
    return 60 * count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
