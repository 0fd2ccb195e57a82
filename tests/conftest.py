"""What holds for all tests: one thread each, also in the processes that they start. The models are tiny, and threads
that wait for each other on a busy machine make a second into a minute."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, so before any test module

from hypothesis import settings

# A busy machine makes any example slow; pytest-timeout bounds the tests.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
