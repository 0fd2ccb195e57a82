"""Jobs of the tests: the tiny default task, in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slurm_cluster import REPOSITORY, SlurmCluster, site_file, wait_for

SMALL = (
    "runtime.target=cpu",
    "runtime.mixed_precision=none",
    "runtime.threads=1",
    "run.prompts_per_step=2",
    "run.group_size=4",
    "run.preflight=false",
    "sampling.max_new_tokens=8",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "evaluation.every=0",
    "checkpoint.every=0",
    "monitor.tensorboard=false",
    "monitor.curve=false",
    "monitor.progress=lines",
    "optimizer.warmup_steps=0",
)
GATED = "reward.verifiers={gated_reward\\:until_go: 1.0}"


class Work:
    """A folder from which jobs are submitted, with a site's file, and what the runs write there."""

    def __init__(self, slurm: SlurmCluster, folder: Path, *site: str) -> None:
        self.slurm, self.folder = slurm, folder
        folder.mkdir(parents=True)
        self.environment = {
            "SHOAL_HOME": str(REPOSITORY),
            "SHOAL_SITE": str(site_file(folder, slurm.folder, *site)),
            "SHOAL_TEST_FOLDER": str(folder),
            "PYTHONPATH": str(Path(__file__).parent),
            "SHOAL_RUN_ROOT": str(folder / "outputs"),
        }

    def sbatch(self, options: str, *words: str, environment: dict[str, str] | None = None) -> int:
        """Submits a run of the default task; the number of its job."""
        command = ["sbatch", "--parsable", *options.split(), str(REPOSITORY / "slurm/grpo.sbatch"), "story", *SMALL]
        done = self.slurm.run(
            *command, *words, cwd=self.folder, environment={**self.environment, **(environment or {})}
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def go(self) -> None:
        """The gated rewards are quick from now on."""
        (self.folder / "go").touch()

    def trains(self, job: int, run: str = "run", seconds: float = 200.0) -> None:
        """Until the run has done a step."""
        try:
            wait_for(lambda: self.steps(run), "the first step", seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.slurm.job(job)}\n{self.everything()}") from None

    def ends(self, job: int, state: str = "COMPLETED", seconds: float = 200.0) -> None:
        """Until the job has ended so."""
        try:
            found = self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=seconds)["JobState"]
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.everything()}") from None
        assert found == state, self.everything()

    def everything(self) -> str:
        """All logs, for the message of a test that failed."""
        files = [*self.folder.glob("*.out"), *sorted(self.folder.glob("outputs/slurm/*/*/*.log"))]
        return "\n".join(f"==> {file}\n{file.read_text()[-3000:]}" for file in files)

    def log(self, job: int) -> str:
        """The job's log so far."""
        file = self.folder / f"shoal-{job}.out"
        return file.read_text() if file.exists() else ""

    def part(self, job: int, attempt: int, name: str) -> str:
        """A log of one attempt."""
        (file,) = self.folder.glob(f"outputs/slurm/*/{job}-{attempt}/{name}.log")
        return file.read_text()

    def steps(self, run: str) -> list[int]:
        """The steps in the run's metrics so far."""
        file = self.folder / "outputs" / run / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
        return [row["step"] for row in rows if "count/completions" in row]

    def status(self, run: str) -> str:
        """The run's status in its summary."""
        text = (self.folder / "outputs" / run / "summary.json").read_text()
        return str(json.loads(text)["status"])
