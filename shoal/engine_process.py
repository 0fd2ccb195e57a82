"""The program of one engine process: the built-in engine over a model of its own, behind HTTP.

    python -m shoal.engine_process --settings=JSON --host=... --port=...

Started by the trainer (engine.processes), which then gives it the policy's weights.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch
import uvicorn

from shoal.child_process import end_with_owner
from shoal.config.nodes.model import ModelConfig
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.processes.app import KEY_VARIABLE, make_app
from shoal.engines.processes.engine import ProcessArguments
from shoal.engines.processes.held import HeldEngine
from shoal.learners.model import compute_as_learners_do, load_causal_lm
from shoal.models.loading import load_tokenizer
from shoal.runtime import DTYPES, Runtime, prepare_allocator

GRACE_SECONDS = 1


def open_engine(arguments: ProcessArguments) -> TorchEngine:
    """The engine over the model as it is on disk, computing as the learner does."""
    cfg = ModelConfig(**arguments.model)
    runtime = Runtime(
        torch.device(arguments.device),
        DTYPES[arguments.param_dtype],
        DTYPES[arguments.compute_dtype] if arguments.compute_dtype else None,
        arguments.attention,
    )
    torch.set_num_threads(arguments.threads)
    model = load_causal_lm(
        arguments.name, cfg.revision, cfg.trust_remote_code, runtime, any_attention=cfg.attention == "auto"
    )
    compute_as_learners_do(model, model, runtime)
    prepare_allocator(RuntimeConfig(tune_malloc=arguments.tune_malloc), sum(one.numel() for one in model.parameters()))
    return TorchEngine(
        model,
        load_tokenizer(cfg),
        max_batch=arguments.max_batch,
        max_cache_tokens=arguments.max_cache_tokens,
        compute_dtype=runtime.compute_dtype,
    )


def main(given: Sequence[str] | None = None) -> None:
    """Serves until it is told to end, or the process that launched it has ended."""
    end_with_owner()
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(given)
    held = HeldEngine(open_engine(ProcessArguments.from_text(options.settings)))
    uvicorn.run(
        make_app(held, os.environ[KEY_VARIABLE]),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
