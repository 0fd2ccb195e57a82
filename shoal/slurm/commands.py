"""SLURM's own commands, as `shoal slurm` uses them. Jobs are named by their number, never by their user."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.errors import ConfigError, TrainingError

SECONDS = 60.0
SEPARATOR = "\x1f"
FIELDS = {"job": "%i", "state": "%T", "reason": "%r", "nodes": "%N", "used": "%M", "limit": "%l", "comment": "%k"}


@dataclass(frozen=True)
class QueuedJob:
    """A job that SLURM has in its queue. `comment` is the run's folder."""

    job: str
    state: str
    reason: str
    nodes: str
    used: str
    limit: str
    comment: str


def call(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints.

    Raises:
        ConfigError: the command is not installed here.
        TrainingError: it failed, with what it said.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]} is not installed here: call this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise TrainingError(f"{command[0]} did not answer within {SECONDS:g} s") from error
    if done.returncode:
        why = (done.stderr or done.stdout).strip().replace("\n", "; ")
        raise TrainingError(f"{command[0]} failed: {why}")
    return done.stdout.strip()


def queued(job: int) -> QueuedJob | None:
    """The job, if it is waiting or running; None where it has ended."""
    try:
        shown = call("squeue", "--noheader", f"--jobs={job}", f"--format={SEPARATOR.join(FIELDS.values())}")
    except TrainingError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return QueuedJob(*shown.splitlines()[0].split(SEPARATOR)) if shown else None


def bad_nodes(nodes: str = "") -> list[str]:
    """Lines on the nodes that are drained, down or failing, each with its reason."""
    which = [f"--nodes={nodes}"] if nodes else []
    shown = call("sinfo", "--noheader", "--list-reasons", "--Node", "--format=%N is %T: %E", *which)
    return sorted(set(shown.splitlines()))
