"""Memory that is free inside glibc's heap while a large model is trained."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from shoal.learners.heap import bound_heap, heap_trimmer
from shoal.runtime import Runtime

needs_glibc = pytest.mark.skipif(heap_trimmer() is None, reason="malloc_trim is glibc's")

MEASURE = """
import json, sys
import torch
from torch import nn
from shoal.learners import heap
from shoal.runtime import Runtime

def grow(mib):  # and frees all but what lies last in the heap, which holds the rest
    return [torch.ones(2**18) for _ in range(mib)][-1]

heap.SMALL_MODEL, heap.HELD = 100, 2**27
model = nn.Sequential(nn.ModuleList([nn.Linear(20, 20)]))
layer = model[0][0]
assert heap.bound_heap(model, Runtime(torch.device("cpu"), torch.float32, None, "sdpa"))
del layer  # the hook is the model's
torch.ones(2**21)  # from here on tensors of one MiB come from the heap
counts = []
kept = []
for mib in (64, 256):
    before = heap.resident()
    kept.append(grow(mib))
    grown = heap.resident() - before
    model[0][0](torch.ones(1, 20))
    counts.append([grown / 2**20, (heap.resident() - before) / 2**20])
print(json.dumps(counts))
"""


@needs_glibc
def test_what_the_heap_holds_for_nothing_is_given_back_before_a_layers_pass_once_it_is_much():
    words = [sys.executable, "-c", MEASURE]
    little, much = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=120).stdout)
    assert little[0] > 50 and little[1] > 50  # MiB, before and after the pass
    assert much[0] > 150
    assert much[1] < 30


@needs_glibc
def test_only_large_models_on_a_cpu_are_watched():
    layers = nn.ModuleList([nn.Linear(2, 2)])
    model = nn.Sequential(layers)
    model.register_parameter("large", nn.Parameter(torch.empty(40_000_000, device="meta")))
    cpu, cuda = (Runtime(torch.device(kind), torch.float32, None, "sdpa") for kind in ("cpu", "cuda"))
    assert not bound_heap(layers, cpu)
    assert not bound_heap(model, cuda)
    assert not layers[0]._forward_pre_hooks
    assert bound_heap(model, cpu)
    assert layers[0]._forward_pre_hooks
