"""What a program may use."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from shoal.errors import DataError

MIB = 2**20
OPEN_FILES = 64
STACK_MIB = 8


@dataclass(frozen=True)
class Limits:
    """Of one test: wall and CPU seconds. Of one program: the rest.

    `memory_mib` limits the address space of every process, and the sum of their resident pages (a page shared by two
    counts twice). `processes` counts threads too. `files_mib` is the size of the private /tmp and of any one file,
    `files` the number of files there.
    """

    seconds: float = 4.0
    cpu_seconds: float = 4.0
    memory_mib: int = 512
    processes: int = 16
    output_kib: int = 1024
    files_mib: int = 16
    files: int = 4096

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not value > 0:
                raise DataError(f"limit {name} of a program must be a number above 0; got {value!r}")

    def rlimits(self, *, tests: int, other_processes: int) -> dict[str, int]:
        """Names of RLIMIT_* and their values, for a process that runs `tests` tests. `other_processes` are those of
        the same user that the kernel counts with the program's."""
        return {
            "RLIMIT_AS": self.memory_mib * MIB,
            "RLIMIT_CPU": ceil(self.cpu_seconds * tests) + 1,
            "RLIMIT_NPROC": self.processes + other_processes,
            "RLIMIT_FSIZE": self.files_mib * MIB,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_STACK": STACK_MIB * MIB,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }
