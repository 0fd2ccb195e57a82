"""`shoal serve engine`: the built-in engine by itself, with a model's weights as they are."""

from __future__ import annotations

import signal
from logging import getLogger
from threading import Event

from shoal.config import ShoalConfig
from shoal.engines.served.engine import ServedEngine
from shoal.engines.served.server import GenerateServer
from shoal.runtime import prepare_allocator, prepare_process, resolve_runtime
from shoal.training.policy import open_policy

logger = getLogger(__name__)


def serve_engine(cfg: ShoalConfig) -> int:
    """Serves `model` at `engine.serve_host` and `engine.serve_port` until Ctrl-C or SIGTERM; the exit status.

    Nobody changes its weights: that is for trying environments out. A trainer with source=rollout_api serves its own.

    Raises:
        ConfigError: the model cannot be loaded, or the address cannot be served.
    """
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    prepare_process(cfg.runtime)
    policy = open_policy(cfg, runtime)
    prepare_allocator(cfg.runtime, sum(one.numel() for one in policy.model.parameters()))
    engine = ServedEngine(
        policy.model,
        policy.tokenizer,
        max_batch=cfg.engine.max_batch,
        max_cache_tokens=cfg.engine.max_cache_tokens,
        compute_dtype=runtime.compute_dtype,
    )
    engine.refresh(0)
    server = GenerateServer(engine, policy.tokenizer, cfg.engine.serve_host, cfg.engine.serve_port)
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        with engine.serving():
            stopped.wait()
    finally:
        logger.info("the engine ends after %d completions", engine.served)
        server.close()
        engine.close()
    return 0
