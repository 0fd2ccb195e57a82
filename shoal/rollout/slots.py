"""The only flow control of asynchronous training: how many groups may be between their start and their publication."""

from __future__ import annotations


class Slots:
    """(lead + 1) x prompts_per_step slots. A group holds one from its start.

    It gives the slot back when the version that was trained on it is *published*, or at once where it is not trained
    on: it failed, or was filtered. Freed at training instead, more groups would be started with one version than can be
    trained before their common deadline, and with `weight_sync.every` above 1 the run would wait for ever.

    Args:
        prompts_per_step: P, the groups of one step.
        lead: L, how many steps rollouts run ahead of the learner.
    """

    def __init__(self, prompts_per_step: int, lead: int) -> None:
        self.total = (lead + 1) * prompts_per_step
        self.running = 0
        """Groups that were started and are neither trained on nor given up."""
        self.unpublished: dict[int, int] = {}
        """Groups by the version that was trained on them and that the engine does not hold yet."""

    @property
    def free(self) -> int:
        """How many groups may be started now."""
        return self.total - self.running - sum(self.unpublished.values())

    def start(self) -> None:
        """Takes a slot for a group that starts.

        Raises:
            RuntimeError: none is free.
        """
        if self.free < 1:
            raise RuntimeError(f"all {self.total} slots are taken: no group may start")
        self.running += 1

    def give_up(self) -> None:
        """Gives back the slot of a group that is not trained on.

        Raises:
            RuntimeError: no group holds one.
        """
        self._end(1)

    def trained(self, groups: int, version: int) -> None:
        """Takes note that `version` is the weights after training on these groups, which keep their slots until it is
        published.

        Raises:
            RuntimeError: fewer groups hold one.
        """
        self._end(groups)
        self.unpublished[version] = self.unpublished.get(version, 0) + groups

    def published(self, version: int) -> int:
        """Gives back the slots of all groups that this version and earlier ones were trained on; how many."""
        return sum(self.unpublished.pop(older) for older in [one for one in self.unpublished if one <= version])

    def _end(self, groups: int) -> None:
        if groups > self.running:
            raise RuntimeError(f"{groups} groups end, and {self.running} are running")
        self.running -= groups
