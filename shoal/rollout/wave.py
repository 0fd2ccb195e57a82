"""Items that are being rolled out, and the completions that are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal.rollout.environment import Item
from shoal.types import Completion, Group

Progress = Callable[[Completion], None]


class Wave:
    """The items of one call, and the completions that are there already."""

    def __init__(self, items: Sequence[Item], size: int) -> None:
        self.items = items
        self.size = size
        self.made: list[list[Completion | None]] = [[None] * size for _ in items]
        self.left = [size] * len(items)
        self.missing = size * len(items)
        self.done: dict[int, Group] = {}
        self.finished: Callable[[Group], None] = lambda group: None
        self.progress: Progress | None = None
        self.cut = False  # ended before it was whole: completions come from their abortion

    def put(self, place: int, index: int, completion: Completion) -> None:
        """Takes a completion, once; a group that is whole with it is finished."""
        if self.made[place][index] is not None:
            return
        self.made[place][index] = completion
        self.left[place] -= 1
        self.missing -= 1
        if self.progress is not None:
            self.progress(completion)
        if self.left[place] == 0:
            group = group_of(self.items[place], [one for one in self.made[place] if one is not None])
            self.done[place] = group
            self.finished(group)

    def groups(self) -> list[Group]:
        """The finished groups, in the items' order."""
        return [self.done[place] for place in range(len(self.items))]

    def missing_places(self) -> list[tuple[int, int]]:
        """Place and index of every completion that is not there yet."""
        return [(place, index) for place, row in enumerate(self.made) for index, one in enumerate(row) if one is None]

    def first_missing(self) -> str:
        """Names a completion that is not there yet."""
        place = next(place for place, left in enumerate(self.left) if left)
        return f"{self.items[place].key}, completion {self.made[place].index(None)}"


def group_of(item: Item, completions: Sequence[Completion]) -> Group:
    """The completions of one item as its group."""
    return Group(id=item.prompt.id, completions=list(completions), prompt=item.prompt, epoch=item.epoch)
