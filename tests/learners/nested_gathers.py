"""A program: gathers of ZeRO-3 within one another, of a model with tied weights. Prints what it finds as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch

from shoal.learners.deepspeed.weights import shape_of, whole
from shoal.learners.lora import plain_weights


def gathers_of_a_tied_model() -> dict[str, Any]:
    """Numbers of elements at each moment."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # see `open_rank`
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    with deepspeed.zero.Init(
        config_dict_or_path={"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    ):
        model = torch.nn.Module()
        model.embedding = torch.nn.Embedding(4, 3)
        model.head = torch.nn.Linear(3, 4, bias=False)
        model.head.weight = model.embedding.weight
    weight = model.embedding.weight
    assert shape_of(weight) == (4, 3)
    found: dict[str, Any] = {"sharded": weight.numel()}
    with whole([weight]):
        found["within"] = weight.numel()
        with whole([weight, model.head.weight]):
            pass
        found["after the inner"] = weight.numel()
    with whole([weight, model.head.weight]):
        found["twice named"] = model.head.weight.numel()
    found["after all"] = weight.numel()
    found["names"] = [name for name, _ in plain_weights(model)]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(gathers_of_a_tied_model()) + "\n")
