"""What holds for all tests: one thread each, also in the processes that they start. The models are tiny, and threads
that wait for each other on a busy machine make a second into a minute."""

import logging
import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, so before any test module

import pytest
import torch
from hypothesis import settings

from shoal.errors import ConfigError
from shoal.rewards.sandbox.core import Sandbox

# A busy machine makes any example slow; pytest-timeout bounds the tests.
settings.register_profile("shoal", deadline=None, derandomize="SHOAL_SAME_EXAMPLES" in os.environ)
settings.load_profile("shoal")


@pytest.fixture(scope="session")
def bubblewrap() -> Sandbox:
    """Tier bubblewrap as whoever runs the tests; where it cannot run, the test is skipped with what to install."""
    try:
        return Sandbox("bubblewrap")
    except ConfigError as error:
        pytest.skip(str(error))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `gpu` runs on CUDA, or at a tiny shape on the CPU where it is asked for (`make test-gpu`)."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or "SHOAL_GPU_ON_CPU" in os.environ:
        return
    from gpu_device import ON_CUDA  # noqa: PLC0415 - imports torch

    for item in () if ON_CUDA else marked:
        item.add_marker(
            pytest.mark.skip(reason="no CUDA device; SHOAL_GPU_ON_CPU=1 runs it at a tiny shape on the CPU")
        )


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """The command line sets Shoal's logger and torch's threads for its own process; here other tests follow."""
    logger = logging.getLogger("shoal")
    handlers, level, threads = logger.handlers, logger.level, torch.get_num_threads()
    yield
    logger.handlers = handlers
    logger.setLevel(level)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
