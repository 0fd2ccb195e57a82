"""The requests that wait for a row."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from shoal.engines.base import Request


class Queue:
    """First come, first served, by prompt: requests of one prompt follow each other and share one prefill."""

    def __init__(self) -> None:
        self._by_prompt: dict[tuple[int, ...], dict[str, Request]] = {}
        self._ids: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._ids

    def __iter__(self) -> Iterator[Request]:
        for requests in self._by_prompt.values():
            yield from requests.values()

    def add(self, request: Request) -> None:
        self._by_prompt.setdefault(request.prompt_ids, {})[request.id] = request
        self._ids[request.id] = request.prompt_ids

    def first_prompt(self) -> tuple[int, ...] | None:
        """The prompt of the next request; None where the queue is empty."""
        return next(iter(self._by_prompt), None)

    def take(self, count: int) -> list[Request]:
        """Removes the first `count` requests."""
        taken = [request for request, _ in zip(self, range(count), strict=False)]
        return self.remove({request.id for request in taken})

    def remove(self, ids: Collection[str]) -> list[Request]:
        """Removes the requests of these ids, in the queue's order; others are ignored."""
        found = [request for request in self if request.id in ids]
        for request in found:
            prompt = self._ids.pop(request.id)
            del self._by_prompt[prompt][request.id]
            if not self._by_prompt[prompt]:
                del self._by_prompt[prompt]
        return found
