"""The learner's own end of a broadcast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Thread

import pytest
import torch

from shoal.training.parts import Parts
from shoal.wire.stream import Meeting, bucket_size, listen, receive

CPU = torch.device("cpu")


def test_a_learner_sends_its_weights_to_the_group_that_it_joined_and_to_no_other(make_parts: Callable[..., Parts]):
    learner = make_parts().learner
    store = listen("127.0.0.1", 30)
    meeting = Meeting("127.0.0.1", store.port, "one", 2, 30)
    specs = learner.weight_specs()
    got: dict[str, torch.Tensor] = {}

    def worker() -> None:
        group = meeting.join(1, CPU)
        got.update({name: weight.clone() for name, weight in receive(group, specs, bucket_size(specs), CPU)})

    thread = Thread(target=worker, daemon=True)
    thread.start()
    learner.join(meeting)
    learner.send_weights(meeting, 0)
    thread.join(30)
    wanted = dict(learner.named_weights())  # type: ignore[attr-defined]
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
    learner.leave()
    with pytest.raises(RuntimeError, match="not in the group one"):
        learner.send_weights(meeting, 0)


def test_where_a_peer_is_lost_those_that_live_are_told_long_before_the_deadline(make_parts: Callable[..., Parts]):
    """Else a worker waits in a broken broadcast until it is taken for hanging, and started again."""
    learner = make_parts().learner
    store = listen("127.0.0.1", 300)
    meeting = Meeting("127.0.0.1", store.port, "one", 3, 300)
    specs = learner.weight_specs()

    def lives() -> None:
        group = meeting.join(1, CPU)
        with suppress(RuntimeError):
            for _ in receive(group, specs, bucket_size(specs), CPU):
                pass

    def is_lost() -> None:
        meeting.join(2, CPU).drop()

    threads = [Thread(target=one, daemon=True) for one in (lives, is_lost)]
    for thread in threads:
        thread.start()
    learner.join(meeting)
    threads[1].join(60)
    with pytest.raises(RuntimeError):
        for _ in range(100):  # what is on its way to a peer that is gone may seem to be sent
            learner.send_weights(meeting, 0)
    threads[0].join(60)
    assert not threads[0].is_alive()
