"""`shoal slurm` on a real SLURM: a pipeline of two stages, its state, its log, its end."""

from __future__ import annotations

import subprocess
import sys

import pytest
from jobs import GATED, SMALL, Work
from slurm_cluster import SlurmCluster, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(400)]


def shoal_slurm(work: Work, *words: str) -> str:
    """What `shoal slurm WORDS` prints."""
    environment = {**work.slurm.environment, **work.environment}
    command = [sys.executable, "-m", "shoal.cli", "slurm", *words]
    done = subprocess.run(command, cwd=work.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pipeline_is_submitted_looked_at_and_run_each_stage_from_the_model_of_the_last(slurm: SlurmCluster) -> None:
    work = Work(slurm, slurm.folder / "pipeline", "export SHOAL_RAY=0", 'SHOAL_SBATCH="--time=5 --nodelist=n1"')
    first = ("story", *SMALL, "run.steps=2", "run.name=first", GATED)
    second = ("story", *SMALL, "run.steps=3", "run.name=second", GATED, "model.name=outputs/first/model")
    said = shoal_slurm(work, "submit", *first, "--then", *(word for word in second if "model.name" not in word))
    jobs = [int(line.partition(":")[0].removeprefix("job ")) for line in said.splitlines() if line.startswith("job ")]
    assert len(jobs) == 2 and f"job {jobs[1]}: outputs/second, after job {jobs[0]}, from its model" in said
    wait_for(lambda: work.steps("first"), "the first step", 200)
    running = shoal_slurm(work, "status", str(jobs[0]), "outputs/second")
    assert f"job {jobs[0]}: RUNNING on n1" in running
    assert f"run {work.folder}/outputs/first: step " in running
    assert f"job {jobs[1]}: PENDING (Dependency)" in running
    work.go()
    work.ends(jobs[0])
    work.ends(jobs[1])
    ended = shoal_slurm(work, "status", "outputs/second")
    assert f"job {jobs[1]}: finished" in ended and "attempt 0  started: on n1" in ended
    config = (work.folder / "outputs/second/.hydra/config.yaml").read_text()
    assert f"name: {work.folder}/outputs/first/model" in config
    assert "step 1/3" in shoal_slurm(work, "logs", str(jobs[1]), "--follow")
    assert "step 1/3" in shoal_slurm(work, "logs", "outputs/second", "--part", "driver", "--attempt", "0")


def test_cancel_saves_first_and_takes_the_later_stages_with_it(slurm: SlurmCluster) -> None:
    work = Work(slurm, slurm.folder / "cancelling", "export SHOAL_RAY=0", 'SHOAL_SBATCH="--time=5 --nodelist=n1"')
    words = ("story", *SMALL, "run.steps=1000", GATED)
    said = shoal_slurm(work, "submit", *words, "run.name=run", "--then", *words, "run.name=later")
    job, later = (int(line.split()[1].rstrip(":")) for line in said.splitlines() if line.startswith("job "))
    work.trains(job)
    assert f"job {job} saves and ends" in shoal_slurm(work, "cancel", "outputs/run")
    work.ends(job, "FAILED")
    work.ends(later, "CANCELLED")
    steps = max(work.steps("run"))
    assert work.status("run") == "stopped" and (work.folder / f"outputs/run/checkpoints/step_{steps}").is_dir()
    assert f"told to end: saved after step {steps}" in work.log(job)
    assert slurm.job(job)["Restarts"] == "0"
