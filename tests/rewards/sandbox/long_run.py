"""Runs one program that sleeps, in the tier and with the Python of the arguments; it is killed meanwhile."""

from __future__ import annotations

import sys

from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import Tests

if __name__ == "__main__":
    tier, python, memory = sys.argv[1:]
    sandbox = Sandbox(tier, python=python or None)
    tests = Tests.from_json([{"input": "", "output": ""}])
    sandbox.run("import time; time.sleep(60)", tests, Limits(seconds=60, memory_mib=int(memory)))
