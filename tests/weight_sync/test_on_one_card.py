"""Weights between two processes on one card, by the memory that both map and through a process group."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gpu_device import DEVICE

from shoal.wire.shared import Bridge, memory_file
from shoal.wire.stream import WeightGroup, WeightSpec, bucket_size, listen, send

pytestmark = pytest.mark.gpu
HOST = "127.0.0.1"
SPECS = [WeightSpec("a", (64, 48), "bfloat16"), WeightSpec("b", (48,), "float32"), WeightSpec("c", (3, 5), "float32")]

HOLDS = """
import sys, torch
from pathlib import Path
from shoal.wire import shared
device, folder = sys.argv[1], Path(sys.argv[2])
weights = {"a": torch.zeros(64, 48, dtype=torch.bfloat16), "b": torch.zeros(48), "c": torch.zeros(3, 5)}
weights = {name: one.to(device) for name, one in weights.items()}
share = shared.share_on_cuda if device == "cuda" else shared.share_on_cpu
share(weights, folder, "a model", {}, "")
print("shared", flush=True)
sys.stdin.readline()
print({name: float(one.double().sum()) for name, one in weights.items()}, flush=True)
"""

RECEIVES = """
import sys, torch
from shoal.wire.stream import WeightGroup, WeightSpec, bucket_size, find, receive
device, port = torch.device(sys.argv[1]), int(sys.argv[2])
specs = [WeightSpec("a", (64, 48), "bfloat16"), WeightSpec("b", (48,), "float32"), WeightSpec("c", (3, 5), "float32")]
group = WeightGroup(find("127.0.0.1", port, 60), "one", 1, 2, 60, device, "127.0.0.1")
found = receive(group, specs, bucket_size(specs), device)
print({name: float(one.double().sum()) for name, one in found}, flush=True)
"""


@contextmanager
def child(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, DEVICE, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def some_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {one.name: torch.randn(one.shape).to(DEVICE, getattr(torch, one.dtype)) for one in SPECS}


def sums(weights: dict[str, torch.Tensor]) -> str:
    return str({name: float(one.double().sum()) for name, one in weights.items()})


def test_what_one_process_writes_to_shared_weights_another_reads(tmp_path: Path) -> None:
    with child(HOLDS, str(tmp_path)) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "shared\n"
        weights = some_weights()
        for name, view in Bridge.read(tmp_path).tensors().items():
            view.copy_(weights[name])
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == sums(weights)
    memory_file(tmp_path).unlink(missing_ok=True)


def test_what_one_process_broadcasts_another_on_the_same_card_receives() -> None:
    store = listen(HOST, 60)
    with child(RECEIVES, str(store.port)) as process:
        weights, device = some_weights(), torch.device(DEVICE)
        group = WeightGroup(store, "one", 0, 2, 60, device, HOST)
        send(group, weights.items(), bucket_size(SPECS), device)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == sums(weights)
