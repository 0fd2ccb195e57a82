"""The learner's own end of a broadcast."""

from __future__ import annotations

from collections.abc import Callable
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
