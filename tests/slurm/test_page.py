"""docs/slurm.md: its commands run from top to bottom, as they stand, on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import REPOSITORY, SlurmCluster, wait_for, with_mark

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (REPOSITORY / "docs/slurm.md").read_text(encoding="utf-8")
COMMANDS = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL))
EXTRAS = "lora,math,ifeval,json,cluster"


@pytest.fixture
def checkout(slurm: SlurmCluster) -> Path:
    """A folder that looks like the repository with its environment made, and where runs may be written."""
    folder = slurm.folder / "checkout"
    (folder / ".venv").mkdir(parents=True)
    for name in ("slurm", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(REPOSITORY / name)
    for name in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv" / f".shoal-{re.sub('[^a-z0-9]', '-', EXTRAS)}").touch()
    return folder


def test_the_page_runs_from_top_to_bottom(slurm: SlurmCluster, checkout: Path) -> None:
    done = subprocess.run(
        ["bash", "-exc", COMMANDS],
        cwd=checkout,
        env={**slurm.environment, "SHOAL_WATCH_SECONDS": "1", "HOME": os.environ.get("HOME", "/root")},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    wait_for(lambda: slurm.run("squeue", "-h").stdout.strip() == "", "the end of all jobs", 60)
    statuses = {
        name: json.loads((checkout / "outputs" / name / "summary.json").read_text())["status"]
        for name in ("first", "plain", "easy", "hard")
    }
    assert set(statuses.values()) == {"finished"}
    assert f"name: {checkout}/outputs/easy/model" in (checkout / "outputs/hard/.hydra/config.yaml").read_text()
    assert "is there already" in done.stdout  # setup_env.sh does nothing the second time
    assert "job" in done.stdout and "step 4/4" in done.stdout
    assert not [one for one in with_mark("") if str(checkout) in one.environ().get("SHOAL_HOME", "")]
