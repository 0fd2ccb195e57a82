"""slurm/grpo.sbatch on a real SLURM with two nodes."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime, timedelta

import pytest
from jobs import GATED, Work
from slurm_cluster import SlurmCluster, wait_for, with_mark

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(400)]

LIMITED_STEPS = 100
"""More than are done in the minute until the time limit, at two seconds a step; quick once the reward is."""


def test_a_broken_environment_on_one_node_is_named_within_a_minute(slurm: SlurmCluster) -> None:
    work = Work(slurm, slurm.folder / "broken", 'if [ "$SLURMD_NODENAME" = n2 ]; then SHOAL_VENV=/nowhere; fi')
    started = time.monotonic()
    job = work.sbatch("--nodes=2 --time=5", "run.steps=1")
    work.ends(job, "FAILED", seconds=60)
    assert time.monotonic() - started < 60
    (line,) = [line for line in work.log(job).splitlines() if "error" in line]
    assert "bad node: n2: there is no /nowhere/bin/python here" in line
    assert "n1:" not in line


def test_a_run_on_two_nodes_has_a_ray_of_two_nodes_and_reports_a_drained_one(slurm: SlurmCluster) -> None:
    work = Work(slurm, slurm.folder / "two")
    many = {f"SLURM_OF_A_SITE_{number}": "x" * 1000 for number in range(200)}
    job = work.sbatch(
        "--nodes=2 --time=5", "run.steps=3", "run.name=run", GATED, environment={**many, "LD_PRELOAD": ""}
    )
    work.trains(job)
    assert re.search(r"2 nodes reach each other; Gloo sums [\d.]+ Gbit/s", work.log(job))
    assert "2 nodes have joined (127.0.0.2, 127.0.0.3): 2 CPUs" in work.log(job)
    slurm.run("scontrol", "update", "nodename=n2", "state=drain", "reason=smells of smoke")
    try:
        wait_for(lambda: "n2 is draining: smells of smoke" in work.log(job), "the line on the drained node", 30)
        work.go()
        work.ends(job)
    finally:
        slurm.run("scontrol", "update", "nodename=n2", "state=resume")
    assert work.steps("run") == [1, 2, 3] and work.status("run") == "finished"
    assert with_mark(f"{job}.") == []
    seen = json.loads((work.folder / "seen.json").read_text())
    assert seen["RAY_ADDRESS"].startswith("127.0.0.2:") and len(seen["RAY_AUTH_TOKEN"]) == 32
    assert not [name for name in seen if name.startswith("SLURM_OF_A_SITE")]
    for node, address in (("n1", "127.0.0.2"), ("n2", "127.0.0.3")):
        started = work.part(job, 0, f"ray-{node}")
        assert (
            f"--node-ip-address={address} " in started and f"--temp-dir={slurm.folder}/shoal-{job}-{node} " in started
        )
        assert "--num-cpus=1 " in started
        assert not (slurm.folder / f"shoal-{job}-{node}").exists()


def test_two_jobs_on_one_node_do_not_meet(slurm: SlurmCluster) -> None:
    works = [Work(slurm, slurm.folder / name) for name in ("first", "second")]
    jobs = [work.sbatch("--nodelist=n2 --time=5", "run.steps=2", "run.name=run", GATED) for work in works]
    for job, work in zip(jobs, works, strict=True):
        work.trains(job)
        assert slurm.job(jobs[0])["JobState"] == slurm.job(jobs[1])["JobState"] == "RUNNING"
    for work in works:
        work.go()
    for job, work in zip(jobs, works, strict=True):
        work.ends(job)
        assert "1 node has joined (127.0.0.3)" in work.log(job)
        assert work.status("run") == "finished"
    ports = [
        set(re.findall(r"-port=(\d+)", work.part(job, 0, "ray-n2"))) for job, work in zip(jobs, works, strict=True)
    ]
    assert len(ports[0]) == 8 and ports[0].isdisjoint(ports[1])


def test_scancel_leaves_no_process(slurm: SlurmCluster) -> None:
    work = Work(slurm, slurm.folder / "cancelled")
    job = work.sbatch("--nodes=2 --time=5", "run.steps=1000", "run.name=run", GATED)
    work.trains(job)
    assert len(with_mark(f"{job}.0.n1")) > 2 and with_mark(f"{job}.0.n2")
    slurm.run("scancel", str(job))
    work.ends(job, "CANCELLED")
    wait_for(lambda: not with_mark(f"{job}."), "the end of every process", 30)
    assert "SIGTERM: saving" in work.log(job)


def test_a_run_that_fails_without_progress_is_given_up(slurm: SlurmCluster) -> None:
    work = Work(slurm, slurm.folder / "failing", "export SHOAL_RAY=0 SHOAL_MAX_FAILURES=2")
    dying = "reward.verifiers={gated_reward\\:ends_the_process: 1.0}"
    job = work.sbatch("--nodelist=n1 --time=5", "run.steps=4", "run.name=run", dying)
    run_again(slurm, job, restarts=1)
    work.ends(job, "FAILED")
    assert "2 attempts in a row made no progress (SHOAL_MAX_FAILURES): giving up" in work.log(job)
    assert slurm.job(job)["Restarts"] == "1"


def test_a_run_at_its_time_limit_saves_is_queued_again_resumes_and_ends(slurm: SlurmCluster) -> None:
    work = Work(slurm, slurm.folder / "limited", "export SHOAL_RAY=0")
    words = (f"run.steps={LIMITED_STEPS}", "run.name=run", GATED)
    job = work.sbatch("--nodelist=n1 --time=30 --signal=B:USR1@25", *words)
    work.trains(job)
    # SLURM looks every half minute whether a job's signal is due.
    soon = f"{datetime.now() + timedelta(seconds=60):%FT%T}"
    assert slurm.run("scontrol", "update", f"jobid={job}", f"EndTime={soon}").returncode == 0
    run_again(slurm, job, restarts=1)
    saved = max(work.steps("run"))
    assert 0 < saved < LIMITED_STEPS and work.status("run") == "stopped"
    assert f"the time limit was near: saved after step {saved}; the job is queued again" in work.log(job)
    work.go()
    work.ends(job)
    assert work.steps("run") == list(range(1, LIMITED_STEPS + 1)) and work.status("run") == "finished"
    assert f"going on after step {saved} of {LIMITED_STEPS}" in work.part(job, 1, "driver")
    assert f"step {saved}/" not in work.part(job, 1, "driver")
    assert "step 1/" in work.part(job, 0, "driver")


def run_again(slurm: SlurmCluster, job: int, restarts: int) -> None:
    """Waits until the job has been queued again, and has SLURM start it now instead of in two minutes."""
    wait_for(
        lambda: (now := slurm.job(job))["Restarts"] == str(restarts) and now["JobState"] == "PENDING",
        f"job {job} in the queue again",
        150,
    )
    assert slurm.run("scontrol", "update", f"jobid={job}", f"StartTime={datetime.now():%FT%T}").returncode == 0
