"""Running a script as another user, who may be unable to reach this Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

NOBODY = "65534"
REPOSITORY = Path(__file__).parents[3]
RUN_HOSTILE = Path(__file__).parent / "run_hostile.py"


def run_script_as(user: str | None, script: Path) -> dict:
    """What a script prints as JSON, run by us or, as root, by another user.

    That one may be unable to reach this Python (in /root, say), so bubblewrap, as root, shows it an own view of the
    machine in which the folders on the way are empty but for Python and the repository.
    """
    command = [sys.executable, str(script)]
    if user is not None:
        needed = [Path(sys.base_prefix), REPOSITORY]
        view = [shutil.which("bwrap"), "--die-with-parent", "--dev-bind", "/", "/"]
        closed = {str(top) for path in needed for top in path.parents if top.stat().st_mode & 0o005 != 0o005}
        for folder in sorted(closed):
            view += ["--tmpfs", folder]
        for path in needed if closed else ():
            for parent in reversed(path.parents):
                if any(parent.is_relative_to(folder) for folder in closed):
                    view += ["--perms", "0755", "--dir", str(parent)]
            view += ["--ro-bind", str(path), str(path)]
        python = os.path.realpath(sys.executable)
        drop = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--"]
        command = [*view, "--", *drop, python, str(script)]
    run = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
