import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from shoal.errors import TrainingError
from shoal.rewards.base import Submission
from shoal.rewards.verdict import Verdict
from shoal.rewards.workers.deadline import MOST_STARTS, DeadlinePool

MISBEHAVING = "fragile_verifiers:misbehaving"
PROCESS_ID = "fragile_verifiers:process_id"


def job(text: str, path: str = MISBEHAVING, **info: str) -> tuple[str, Submission]:
    return path, Submission(text=text, info=dict(info))


def judged(pool: DeadlinePool, jobs: Sequence[tuple[str, Submission]]) -> list[Verdict]:
    return pool.take([pool.add(one) for one in jobs])


def gone(process: int, seconds: float = 5) -> bool:
    """Whether a process ends in time; one that waits to be reaped has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [1, 3])
def test_each_misbehaviour_makes_its_own_score_missing_and_no_other(workers: int) -> None:
    bad = {
        "hang": "no verdict within 2 s",
        "hang in C": "no verdict within 2 s",
        "crash": "the process died",
        "exit": "the process died",
        "raise": "RuntimeError: no such luck",
        "nan": "gave nan",
        "words": "gave str, not a number",
        "hog": "MemoryError: ",
    }
    texts = [text for name in bad for text in ("fine", name)] + ["fine"]
    with DeadlinePool([MISBEHAVING], workers=workers, timeout=2, memory_gib=0.5) as pool:
        verdicts = judged(pool, [job(text) for text in texts])
    assert {text: verdict.reason for text, verdict in zip(texts, verdicts, strict=True) if text in bad} == bad
    for text, verdict in zip(texts, verdicts, strict=True):
        assert verdict.score == (None if text in bad else 1.0), text


def test_verdicts_come_in_the_jobs_order_from_several_workers() -> None:
    lengths = [7, 1, 5, 3, 2, 8, 4, 6, 0, 9]
    with DeadlinePool(["fragile_verifiers:length"], workers=3, timeout=10, memory_gib=0) as pool:
        verdicts = judged(pool, [job("x" * length, "fragile_verifiers:length") for length in lengths])
    assert [verdict.score for verdict in verdicts] == lengths


def test_a_verifier_may_print_and_finds_its_input_empty() -> None:
    with DeadlinePool([MISBEHAVING], workers=1, timeout=10, memory_gib=0) as pool:
        assert [verdict.score for verdict in judged(pool, [job("print"), job("read"), job("fine")])] == [1.0, 0.0, 1.0]


def test_jobs_are_judged_while_the_caller_does_other_things() -> None:
    with DeadlinePool([MISBEHAVING], workers=1, timeout=2, memory_gib=0) as pool:
        judged(pool, [job("fine")])
        tickets = [pool.add(job(text)) for text in ("fine", "hang", "fine", "fine")]
        time.sleep(2.5)  # longer than a verdict may take: the one that was given in time counts all the same
        pool.look()
        verdicts = pool.take(tickets)
        assert [verdict.score for verdict in verdicts] == [1.0, None, 1.0, 1.0]
        assert [verdict.score for verdict in judged(pool, [job("fine")] * 2)] == [1.0, 1.0]


def test_hangs_are_waited_for_at_the_same_time() -> None:
    with DeadlinePool([MISBEHAVING], workers=4, timeout=2, memory_gib=0) as pool:
        while sum(worker.ready for worker in pool.workers) < 4:  # the workers' start does not count
            judged(pool, [job("fine")] * 4)
        start = time.monotonic()
        verdicts = judged(pool, [job("hang")] * 4)
        seconds = time.monotonic() - start
    assert all(verdict.score is None for verdict in verdicts)
    assert seconds < 5  # one after another takes 8


def test_nothing_is_started_before_the_first_job_and_nothing_is_left_after_closing() -> None:
    pool = DeadlinePool([PROCESS_ID], workers=2, timeout=10, memory_gib=0)
    assert pool.workers == []
    processes = {int(verdict.score or 0) for verdict in judged(pool, [job("", PROCESS_ID) for _ in range(20)])}
    assert os.getpid() not in processes
    started = [worker.process.pid for worker in pool.workers]
    assert processes <= set(started)
    pool.close()
    assert all(map(gone, started))


def test_a_worker_is_kept_from_call_to_call_and_replaced_after_a_crash() -> None:
    paths = [MISBEHAVING, PROCESS_ID]
    with DeadlinePool(paths, workers=1, timeout=10, memory_gib=0) as pool:
        first, second = (judged(pool, [job("", PROCESS_ID)])[0].score for _ in range(2))
        judged(pool, [job("crash")])
        third = judged(pool, [job("", PROCESS_ID)])[0].score
    assert first == second
    assert third not in (None, first)


def test_what_a_verifier_started_is_killed_with_it(tmp_path: Path) -> None:
    path = "fragile_verifiers:start_a_child_and_hang"
    file = tmp_path / "child"
    with DeadlinePool([path], workers=1, timeout=2, memory_gib=0) as pool:
        assert judged(pool, [job("", path, file=str(file))])[0].score is None
        assert gone(int(file.read_text()))


@pytest.mark.parametrize(
    ("text", "seconds"),
    # A worker at rest sees its input end; one that is stuck in a verdict is ended by its own alarm.
    [("fine", 5), pytest.param("hang in C", 20, marks=pytest.mark.slow)],
)
def test_no_worker_outlives_a_trainer_that_was_killed(text: str, seconds: float) -> None:
    code = (
        "import os, sys, threading, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from shoal.rewards.base import Submission\n"
        "from shoal.rewards.workers.deadline import MOST_STARTS, DeadlinePool\n"
        f"pool = DeadlinePool([{MISBEHAVING!r}], workers=1, timeout=1, memory_gib=0)\n"
        f"pool.take([pool.add(({MISBEHAVING!r}, Submission(text='fine')))])\n"
        "print(pool.workers[0].process.pid, flush=True)\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()\n"
        f"pool.take([pool.add(({MISBEHAVING!r}, Submission(text={text!r})))])\n"
        "time.sleep(240)\n"
    )
    trainer = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=240, check=False)
    assert trainer.returncode == -signal.SIGKILL
    assert gone(int(trainer.stdout), seconds)


def test_a_worker_that_does_not_start_is_an_error_that_names_what_it_imports() -> None:
    with DeadlinePool(["no_such_module:f"], workers=1, timeout=1, memory_gib=0) as pool:
        with pytest.raises(TrainingError, match="no_such_module:f"):
            judged(pool, [job("", "no_such_module:f")])
        assert pool.workers == []


KILLED_AT_FIRST = """
import os, pathlib, signal
marker = pathlib.Path(__file__).with_suffix(".starts")
starts = len(marker.read_text()) if marker.exists() else 0
marker.write_text("x" * (starts + 1))
if starts < {deaths}:
    os.kill(os.getpid(), signal.SIGKILL)
def right(submission):
    return 1.0
"""


@pytest.mark.parametrize("deaths", [1, MOST_STARTS])
def test_a_worker_that_is_killed_while_starting_is_started_again_a_few_times(
    deaths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed_at_first.py").write_text(KILLED_AT_FIRST.format(deaths=deaths))
    monkeypatch.syspath_prepend(tmp_path)
    path = "killed_at_first:right"
    with DeadlinePool([path], workers=1, timeout=30, memory_gib=0) as pool:
        if deaths < MOST_STARTS:
            assert judged(pool, [job("", path)])[0].score == 1.0
        else:
            with pytest.raises(TrainingError, match=r"did not start .*, exit status -9"):
                judged(pool, [job("", path)])


def test_jobs_sent_ahead_of_a_hang_are_judged_by_another_worker_whatever_their_size() -> None:
    # Far more bytes than a pipe holds wait behind a worker that reads nothing: no write may wait for it.
    texts = ["fine"] * 40 + ["hang"] + ["fine" + " " * 50_000] * 40
    with DeadlinePool([MISBEHAVING], workers=2, timeout=2, memory_gib=0) as pool:
        verdicts = judged(pool, [job(text) for text in texts])
    assert [verdict.score is None for verdict in verdicts] == [text == "hang" for text in texts]
