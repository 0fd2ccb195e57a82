"""What becomes of a run one of whose nodes is lost: see `cluster.lost_node`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from logging import getLogger
from time import monotonic, sleep

from shoal.cluster.placement import Share
from shoal.config.nodes.cluster import ClusterConfig
from shoal.errors import TrainingError

logger = getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at whether a lost node is back


def after_loss(cfg: ClusterConfig, shares: list[Share], lost_nodes: Callable[[], list[str]]) -> list[Share]:
    """What the nodes of the run hold after those that are gone were waited for, or taken out. `lost_nodes` gives the
    addresses of those that are gone at the moment.

    Raises:
        TrainingError: the run ends for it, or a node has not come back within `cluster.node_timeout` seconds.
    """
    lost = lost_nodes()
    if not lost:
        return shares
    nodes = ", ".join(lost)
    if cfg.lost_node == "end":
        raise TrainingError(f"the Ray node {nodes} is lost (cluster.lost_node=end)")
    if cfg.lost_node == "without":
        return without(shares, lost)
    logger.warning("the Ray node %s is lost: waiting for it, for %g s (cluster.node_timeout)", nodes, cfg.node_timeout)
    deadline = monotonic() + cfg.node_timeout
    while left := lost_nodes():
        if monotonic() > deadline:
            raise TrainingError(
                f"the Ray node {', '.join(left)} has not come back within {cfg.node_timeout:g} s "
                "(cluster.node_timeout): start it again, or set cluster.lost_node=without"
            )
        sleep(min(LOOK_SECONDS, cfg.node_timeout))
    logger.warning("the Ray node %s is back", nodes)
    return shares


def without(shares: Sequence[Share], lost: Sequence[str]) -> list[Share]:
    """The nodes that are left. Ranks are numbered anew, engines keep their numbers.

    Raises:
        TrainingError: no rank is left of several, or no engine.
    """
    left = [one for one in shares if one.node.address not in lost]
    (ranks, of_ranks), (engines, of_engines) = (
        (sum(len(getattr(one, part)) for one in some) for some in (left, shares)) for part in ("ranks", "engines")
    )
    if (of_ranks and not ranks) or (of_engines and not engines):
        what = "rank" if of_ranks and not ranks else "engine"
        raise TrainingError(
            f"the Ray node {', '.join(lost)} is lost, and without it the run has no {what}: start it again, and resume "
            "the run"
        )
    logger.warning(
        "the Ray node %s is lost: the run goes on without it (cluster.lost_node=without), with %d of %d ranks and "
        "%d of %d engines",
        ", ".join(lost),
        ranks,
        of_ranks,
        engines,
        of_engines,
    )
    first, found = 0, []
    for one in left:
        found.append(replace(one, ranks=tuple(range(first, first + len(one.ranks)))))
        first += len(one.ranks)
    return found
