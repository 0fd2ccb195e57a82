"""Options of the verifier `code`."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class CodeConfig:
    """How the programs of the verifier `code` are run and scored. `shoal serve code` takes tier and python itself."""

    url: str | None = option(None, "Address of a `shoal serve code`, such as http://127.0.0.1:1234. None: run here")
    tier: str = option(
        "bubblewrap",
        "Isolation of the programs; Shoal never falls back to a weaker one",
        choices=("bubblewrap", "process"),
    )
    python: str | None = option(None, "Python that runs them, with its packages. None: this one's standard library")
    seconds: float = option(4.0, "Wall time of one test; after that the test has failed", least=0, most=1e6)
    cpu_seconds: float = option(4.0, "Processor time of one test", least=0, most=1e6)
    total_seconds: float = option(
        8.0, "Wall time of all tests of a program together; the remaining tests have failed", least=0, most=1e6
    )
    memory_mib: int = option(512, "Memory of a program, all its processes together", least=32)
    processes: int = option(16, "Processes and threads of a program", least=4)
    output_kib: int = option(1024, "Output of one test", least=1)
    files_mib: int = option(16, "Size of the private /tmp of a program", least=1)
    threshold: float = option(0.0, "Pass rate below which the score is 0. 1: all tests or nothing", least=0, most=1)
    slow_penalty: bool = option(False, "Count a passed test as (seconds - its time) / seconds")
