"""Which weight sync into replicas a configuration names, and the bridge where a server was started by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from shoal.config import ShoalConfig
from shoal.config.nodes.vllm import VllmConfig
from shoal.errors import ConfigError
from shoal.learners.base import Learner
from shoal.learners.local import LocalLearner
from shoal.models.adapters import adapter_base, rank_of
from shoal.weight_sync.broadcast import BroadcastSync
from shoal.weight_sync.buffers import BufferSync
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.lora import LoraSync
from shoal.weight_sync.restart import RestartSync
from shoal.weight_sync.servers import ServerSync
from shoal.weight_sync.shared import SEED_FILE, SharedSync, find_bridge, share
from shoal.wire.shared import BRIDGE_FILE, Bridge


def build_server_sync(
    cfg: ShoalConfig, learner: Learner, engine: Any, check: SelfCheck, folder: Path | None
) -> ServerSync:
    """The sync of `weight_sync.kind`. What is handed over on disk lies in the run's `folder` while the run lasts.

    Raises:
        ConfigError: the servers that are there do not fit.
    """
    sync = cfg.weight_sync
    place = folder / "weight_sync" if folder else Path(mkdtemp(prefix="shoal_weight_sync_"))
    found: ServerSync
    if sync.kind == "shared" and cfg.engine.kind == "torch":
        found = BufferSync(sync, learner, engine, check, place)
    elif sync.kind == "broadcast":
        found = BroadcastSync(sync, learner, engine, check)
    elif sync.kind == "restart":
        found = RestartSync(sync, learner, engine, check, place, fresh=adapter_base(cfg.model.name) is None)
    elif sync.kind == "lora":
        assert isinstance(learner, LocalLearner)  # no other goes with it: see config/validate.py
        found = LoraSync(sync, learner, engine, check, place, rank_of(learner.policy.model))
    else:
        bridge = bridge_of(cfg)
        if bridge is None:
            share(engine.replicas[0], place)
        found = SharedSync(sync, learner, engine, check, bridge or place, ours=bridge is None)
    engine.restore = found.restore
    return found


def servers_of(cfg: ShoalConfig) -> VllmConfig:
    """`engine.vllm`, with the server that a bridge names where none is given.

    Raises:
        ConfigError: the server was started without an address.
    """
    bridge = bridge_of(cfg)
    if bridge is None or cfg.engine.vllm.endpoints:
        return cfg.engine.vllm
    url = Bridge.read(bridge).url
    if not url:
        raise ConfigError(f"the bridge in {bridge} names no server: set engine.vllm.endpoints=[http://HOST:PORT]")
    return replace(cfg.engine.vllm, endpoints=[url])


def bridge_of(cfg: ShoalConfig) -> Path | None:
    """The folder of the bridge to a server that was started by hand; None where Shoal launches it.

    Raises:
        ConfigError: such a server is meant, but its bridge is not there.
    """
    if cfg.weight_sync.kind != "shared":
        return None
    logdir = os.environ.get("LOGDIR")
    by_environment = bool(logdir) and any((Path(logdir or "") / file).is_file() for file in (BRIDGE_FILE, SEED_FILE))
    if cfg.weight_sync.bridge or cfg.engine.vllm.endpoints or by_environment:
        return find_bridge(cfg.weight_sync.bridge)
    return None
