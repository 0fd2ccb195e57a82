"""What is run and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from shoal.errors import DataError, ShoalError


class SandboxError(ShoalError):
    """The sandbox itself failed, so that nothing is known about the program: its reward is missing."""


class Status(StrEnum):
    """How one test ended. All but `passed` are the program's fault."""

    PASSED = "passed"
    WRONG = "wrong"
    ERROR = "error"
    TIMEOUT = "timeout"
    LIMIT = "limit"


@dataclass(frozen=True)
class TestResult:
    """`seconds` is wall time; `detail` a short reason, empty where the test passed."""

    __test__ = False  # not a test of pytest's

    status: Status
    seconds: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status is Status.PASSED

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "status": self.status.value}


@dataclass(frozen=True)
class StdioTest:
    """The program must end with exit status 0 and have written `output` to stdout, given `input`. `tolerance` is that
    of all numbers, relative; None: 1e-6 for those that `output` writes as floats, and none for integers."""

    input: str
    output: str
    tolerance: float | None = None


@dataclass(frozen=True)
class Tests:
    """Assert tests (Python statements) or stdin/stdout tests; one of the two, and not empty."""

    __test__ = False

    asserts: tuple[str, ...] = ()
    stdio: tuple[StdioTest, ...] = ()

    def __len__(self) -> int:
        return len(self.asserts) + len(self.stdio)

    @classmethod
    def from_json(cls, value: object) -> Tests:
        """From a list of statements, or of objects with `input` and `output`.

        Raises:
            DataError: it is neither.
        """
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            if all(isinstance(test, str) for test in value):
                return cls(asserts=tuple(value))
            if all(isinstance(test, dict) and isinstance(test.get("output"), str) for test in value):
                return cls(
                    stdio=tuple(
                        StdioTest(str(test.get("input", "")), test["output"], test.get("tolerance")) for test in value
                    )
                )
        raise DataError(
            f"tests of a program must be a list of statements, or of objects with input and output; got {value!r:.200}"
        )

    def to_json(self) -> list[Any]:
        return list(self.asserts) or [asdict(test) for test in self.stdio]
