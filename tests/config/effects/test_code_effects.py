"""The options of the verifier `code`."""

from __future__ import annotations

import shutil
import threading
from dataclasses import asdict

import pytest

from effects.registry import effect
from shoal.errors import ConfigError
from shoal.rewards.base import Submission
from shoal.rewards.sandbox.outcome import Status, TestResult
from shoal.rewards.sandbox.serve import CodeServer
from shoal.rewards.verifiers.code import code, score_of

WIDE = {"reward.code.seconds": 20, "reward.code.cpu_seconds": 20, "reward.code.total_seconds": 60, "reward.timeout": 90}
pytestmark = pytest.mark.usefixtures("bubblewrap")

SILENT = [{"input": "", "output": ""}]


def score(config, program: str, tests: list[dict[str, str]]) -> float:
    return code(Submission(f"```python\n{program}\n```", tests), **asdict(config.reward.code))


def scores_of(settings, key: str, values: tuple[int, int], program: str) -> list[float]:
    return [score(settings({**WIDE, key: value}), program, SILENT) for value in values]


@effect("reward.code.seconds")
def test_a_test_may_take_so_long(settings):
    assert scores_of(settings, "reward.code.seconds", (1, 20), "import time; time.sleep(1.5)") == [0.0, 1.0]


@pytest.mark.slow
@effect("reward.code.cpu_seconds")
def test_a_test_may_compute_so_long(settings):
    program = "import time\nwhile time.process_time() < 1.2: pass"
    values = [settings({**WIDE, "reward.code.cpu_seconds": s}) for s in (0.3, 20)]
    assert [score(config, program, SILENT) for config in values] == [0.0, 1.0]


@pytest.mark.slow
@effect("reward.code.total_seconds")
def test_all_tests_may_take_so_long(settings):
    values = [settings({**WIDE, "reward.code.total_seconds": s}) for s in (1.2, 60)]
    scores = [score(config, "import time; time.sleep(0.8)", SILENT * 3) for config in values]
    assert scores[0] < scores[1] == 1.0


@effect("reward.code.memory_mib")
def test_a_program_may_have_so_much_memory(settings):
    assert scores_of(settings, "reward.code.memory_mib", (100, 500), "bytearray(200 * 2**20)") == [0.0, 1.0]


@effect("reward.code.processes")
def test_a_program_may_have_so_many_processes(settings):
    program = "import threading, time\nfor _ in range(6):\n    threading.Thread(target=time.sleep, args=(1,)).start()"
    assert scores_of(settings, "reward.code.processes", (4, 16), program) == [0.0, 1.0]


@effect("reward.code.output_kib")
def test_a_program_may_write_so_much(settings):
    program = "import sys; sys.stderr.write('x' * 5000)"
    assert scores_of(settings, "reward.code.output_kib", (1, 100), program) == [0.0, 1.0]


@effect("reward.code.files_mib")
def test_a_program_may_store_so_much(settings):
    program = "open('x', 'wb').write(bytes(3 * 2**20))"
    assert scores_of(settings, "reward.code.files_mib", (1, 8), program) == [0.0, 1.0]


@effect("reward.code.threshold", "reward.code.slow_penalty")
def test_the_pass_rate_is_cut_off_below_a_threshold_and_slowness_penalised(settings):
    results = [TestResult(Status.PASSED, 1.0), TestResult(Status.WRONG, 1.0)]
    base = {"reward.code.seconds": 4.0}
    plain = settings({**base, "reward.code.threshold": 0.5, "reward.code.slow_penalty": False}).reward.code
    strict = settings({**base, "reward.code.threshold": 0.6}).reward.code
    slow = settings({**base, "reward.code.slow_penalty": True}).reward.code
    assert [score_of(results, config) for config in (plain, strict, slow)] == [0.5, 0.0, 0.375]


@effect("reward.code.tier")
def test_a_tier_decides_what_can_be_read(settings):
    program = "open('/etc/passwd')"
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    values = [
        settings({**WIDE, "reward.code.tier": t, "reward.code.python": python}) for t in ("bubblewrap", "process")
    ]
    assert [score(config, program, SILENT) for config in values] == [0.0, 1.0]


@effect("reward.code.python")
def test_another_python_runs_the_programs(settings):
    with pytest.raises(ConfigError, match="/no/such/python"):
        score(settings({"reward.code.python": "/no/such/python"}), "", SILENT)
    assert score(settings({**WIDE, "reward.code.python": None}), "", SILENT) == 1.0


@effect("reward.code.url")
def test_programs_run_on_the_server_at_an_address(settings):
    server = CodeServer("127.0.0.1", 0, tier="bubblewrap", python=None, workers=1)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        for url, done in ((None, 0), (f"http://127.0.0.1:{server.server_port}", 1)):
            assert score(settings({**WIDE, "reward.code.url": url}), "", SILENT) == 1.0
            assert server.done == done
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
