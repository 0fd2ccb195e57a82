"""The loop. Every mode of Shoal is this loop with other parts."""

from __future__ import annotations

from collections.abc import Iterator
from logging import getLogger

from shoal.algorithms.batch import make_batch
from shoal.training.sources import StoppedWaiting
from shoal.training.state import Run

logger = getLogger(__name__)


def train_loop(run: Run) -> None:
    """Trains until the last step or until the run is told to stop; the current step is always finished and saved."""
    monitor = run.monitor
    run.publish()
    if run.step == 0 and run.cfg.evaluation.at_start and run.evaluated_step < 0:
        run.evaluate()
    for step in remaining_steps(run):
        try:
            groups = run.source.next_groups(step)
        except StoppedWaiting:
            break
        run.refuse_broken(step, groups)
        if run.reference is not None:
            with monitor.phase("reference"):
                run.score_reference(groups)
        batch, report = make_batch(groups, run.cfg.algorithm, **run.batch_arguments())
        with monitor.phase("train"):
            metrics, report = run.train(step, groups, batch, report)
        with monitor.phase("sync"):
            sync_seconds = run.publish()
        run.record(step, groups, report, metrics, sync_seconds)
    run.settle()
    if run.finished and run.cfg.evaluation.at_end and run.evaluated_step < run.step:
        run.evaluate()


def remaining_steps(run: Run) -> Iterator[int]:
    """The numbers of the steps still to do, from 1, until a stop is asked for."""
    while not run.finished and not run.stopping():
        yield run.step + 1
