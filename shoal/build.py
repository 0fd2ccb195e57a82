"""From a configuration to a run: the one place that knows which class stands behind which kind."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
import torch

from shoal.config import ShoalConfig
from shoal.config.cautions import cautions
from shoal.config.nodes.data import RewardConfig
from shoal.devices.plan import ALONE, BESIDE_LEARNER
from shoal.engines.base import Engine
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.processes.engine import POSITIONS, EngineProcess, ProcessArguments, ProcessEngine
from shoal.engines.served.engine import ServedEngine
from shoal.engines.servers.process import Launcher
from shoal.engines.servers.requests import RequestForm
from shoal.engines.stopping import text_decoder
from shoal.engines.vllm.arguments import longest, policy_arguments
from shoal.engines.vllm.compat import check_vllm
from shoal.engines.vllm.endpoint import key_or_environment
from shoal.engines.vllm.in_process import InProcessVllmEngine
from shoal.engines.vllm.process import VllmProcess
from shoal.engines.vllm.server_engine import VllmServerEngine
from shoal.errors import ConfigError
from shoal.learners.base import Learner
from shoal.learners.device_memory import refuse_too_much
from shoal.learners.local import LocalLearner
from shoal.models.info import ModelInfo
from shoal.models.tokenizer_notes import tokenizer_notes
from shoal.monitor.monitor import Monitor
from shoal.references.base import Reference
from shoal.references.model import ModelReference
from shoal.references.vllm import endpoint_reference, launched_reference
from shoal.rewards.base import Verifier
from shoal.rewards.scorer import Scorer
from shoal.rewards.workers.pool import Pool, pool_here
from shoal.rollout.engine_model import EngineModel
from shoal.rollout.open import open_environment
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.task import environment_task, with_own_reward
from shoal.runtime import Runtime, planned_runtime, prepare_allocator, prepare_process
from shoal.tasks.base import Task
from shoal.training.async_source import AsyncSource
from shoal.training.checkpoint import CheckpointStore
from shoal.training.evaluate import Evaluator
from shoal.training.names import check_names
from shoal.training.parts import Parts
from shoal.training.policy import model_info, open_policy, story_model
from shoal.training.recording import GroupRecording
from shoal.training.sources import GroupSource, ReplaySource, SyncSource
from shoal.training.state import Run
from shoal.weight_sync.base import WeightSync
from shoal.weight_sync.build import build_server_sync, servers_of
from shoal.weight_sync.check import SelfCheck, logprob_tolerance, make_probe
from shoal.weight_sync.in_place import InPlaceSync

if TYPE_CHECKING:
    from shoal.cluster.cluster import Cluster  # imports Ray, an optional package

logger = getLogger(__name__)


def total_steps(cfg: ShoalConfig) -> int:
    """Length of the run in steps; episodes are completions."""
    per_step = cfg.run.prompts_per_step * cfg.run.group_size
    return cfg.run.episodes // per_step if cfg.run.episodes else cfg.run.steps


def build_parts(cfg: ShoalConfig, rewards: Mapping[str, Verifier], folder: Path | None = None) -> Parts:
    """Reads the data, loads the model and connects the parts. `folder` is the run's, where there is one.

    What can be told without the model's weights is told before they are loaded: names, the tokenizer, every row.
    """
    check_names(cfg, rewards)
    check_packages(cfg)
    runtime = planned_runtime(cfg)
    prepare_process(cfg.runtime)
    seed_everything(cfg.run.seed)
    info = model_info(cfg)
    refuse_too_much(cfg, runtime, info)
    if cfg.data.task != "story":  # the built-in tokenizer knows that task's words alone
        for note in tokenizer_notes(info.tokenizer):
            logger.warning("%s", note)
    decode = decoder(info)
    environment = open_environment(cfg, info.tokenizer, decode)
    rewards = with_own_reward(environment, rewards)
    logger.info("reading the data")
    task = environment_task(cfg, environment, rewards)
    check_ids(task, info)
    seed_everything(cfg.run.seed)  # a new adapter depends on the seed alone, whatever was drawn until here
    with ExitStack() as beneath, ExitStack() as undo:
        cluster = open_cluster(cfg, beneath)
        learner = build_learner(cfg, runtime, info, folder, cluster)
        undo.callback(learner.close)
        placed = cluster if cfg.cluster.kind == "ray" else None
        engine = build_engine(cfg, learner, replace(learner.runtime, plan=runtime.plan), folder, placed)
        undo.callback(engine.close)
        sync = build_weight_sync(cfg, learner, engine, self_check(cfg, task, engine, learner), folder)
        undo.callback(sync.close)
        named = {name for prompt in (*task.train, *task.evaluation) for name in prompt.verifiers}
        scorer = Scorer(cfg.reward, task.verifiers, rewards, folder, named, workers_of(cfg, placed, folder))
        undo.pop_all()
        beneath = beneath.pop_all()
    rollouts = Rollouts(environment, EngineModel(engine), scorer)
    return Parts(runtime, task, decode, scorer, learner, engine, sync, rollouts, beneath)


def workers_of(
    cfg: ShoalConfig, cluster: Cluster | None, folder: Path | None
) -> Callable[[Sequence[str], RewardConfig], Pool]:
    """What starts reward workers: on this machine, or so many on each node of the cluster."""
    if cluster is None or not cfg.cluster.workers_per_node:
        return pool_here
    from shoal.cluster.placed_workers import PlacedPool  # noqa: PLC0415 - imports Ray, an optional package

    def on_nodes(paths: Sequence[str], reward: RewardConfig) -> Pool:
        each = cfg.cluster.workers_per_node
        logs = log_folder(cfg, folder)
        return PlacedPool(cluster, logs, paths, each=each, timeout=reward.timeout, memory_gib=reward.memory_gib)

    return on_nodes


def check_ids(task: Task, info: ModelInfo) -> None:
    """Raises ConfigError where a prompt has a token that the model does not know."""
    for prompt in (*task.train, *task.evaluation):
        if prompt.token_ids and max(prompt.token_ids) >= info.vocabulary:
            raise ConfigError(
                f"prompt {prompt.id}: token {max(prompt.token_ids)} is beyond the model's {info.vocabulary} ids; "
                "set model.tokenizer to the one that the model was trained with, or leave such prompts out"
            )


def limit_notes(cfg: ShoalConfig, parts: Parts) -> list[str]:
    """A line where the model's positions, and not sampling.max_new_tokens, end the completions of some prompts."""
    positions = min(parts.info.max_positions, parts.engine.max_length)
    longest_prompt = max((len(prompt.token_ids) for prompt in (*parts.task.train, *parts.task.evaluation)), default=0)
    room = positions - longest_prompt
    if room >= cfg.sampling.max_new_tokens:
        return []
    return [
        f"sampling.max_new_tokens={cfg.sampling.max_new_tokens}: the model has room for {positions} tokens; its "
        f"longest prompt of {longest_prompt} leaves {room}, where completions end and count as cut off at the limit"
    ]


def check_packages(cfg: ShoalConfig) -> None:
    """Raises EngineError where vLLM would be started and is not there, before anything large is loaded."""
    engine = cfg.engine.kind == "vllm" or (cfg.engine.kind == "vllm_server" and not servers_of(cfg).endpoints)
    if engine or (cfg.algorithm.kl_coef > 0 and cfg.reference.kind == "vllm_launch"):
        check_vllm()


def build_engine(
    cfg: ShoalConfig, learner: Learner, runtime: Runtime, folder: Path | None, cluster: Cluster | None
) -> Engine:
    """The engine that `engine.kind` names. `folder` is the run's, for log files; `cluster` places what it starts."""
    info = learner.info
    if cfg.engine.kind != "torch":
        arguments = policy_arguments(cfg, info, runtime)
        form = RequestForm(info.end_ids, info.tokenizer, arguments.max_model_len, longest(cfg))
        if cfg.engine.kind == "vllm":
            return InProcessVllmEngine(arguments, form, cfg.engine.vllm.request_timeout)
        servers, logs = servers_of(cfg), log_folder(cfg, folder)
        if cluster is None:
            return VllmServerEngine(arguments, form, servers, logs)
        from shoal.cluster.server_actor import PlacedLauncher  # noqa: PLC0415 - imports Ray, an optional package

        # They listen where other machines can ask them.
        share = cfg.engine.vllm.memory_share or (BESIDE_LEARNER if cfg.cluster.share_gpus else ALONE)
        arguments = replace(arguments, memory_share=share, devices=())
        servers = replace(servers, servers=cluster.engines, api_key=key_or_environment(servers.api_key) or token_hex())
        return VllmServerEngine(arguments, form, servers, logs, PlacedLauncher(cluster, VllmProcess))
    if cfg.engine.processes:
        return build_processes(cfg, info, runtime, log_folder(cfg, folder), cluster)
    if not isinstance(learner, LocalLearner):
        raise ConfigError(
            f"engine=torch samples in the learner's process, and learner={cfg.learner.kind} trains in others: set "
            "engine.processes=1 or more"
        )
    # Environments ask the engine of a run that they send groups to.
    kind = ServedEngine if cfg.source.kind == "rollout_api" else TorchEngine
    return kind(
        learner.policy.model,
        learner.policy.tokenizer,
        max_batch=cfg.engine.max_batch,
        max_cache_tokens=cfg.engine.max_cache_tokens,
        compute_dtype=runtime.compute_dtype,
    )


def build_processes(
    cfg: ShoalConfig, info: ModelInfo, runtime: Runtime, folder: Path, cluster: Cluster | None = None
) -> ProcessEngine:
    """The built-in engine in `engine.processes`. They start from the model that the policy was loaded from; what was
    trained, or merged, since then comes with the first publication."""
    model = asdict(cfg.model) | {
        "tokenizer": info.tokenizer.name_or_path,
        "revision": info.revision,
    }
    arguments = [
        ProcessArguments(
            name=info.name,
            model=model,
            device=runtime.device.type if cluster else str(runtime.of_engine(number)),
            param_dtype=str(runtime.param_dtype).removeprefix("torch."),
            compute_dtype=str(runtime.compute_dtype).removeprefix("torch.") if runtime.compute_dtype else None,
            attention=runtime.attention,
            threads=cfg.engine.threads,
            tune_malloc=cfg.runtime.tune_malloc,
            max_batch=cfg.engine.max_batch,
            max_cache_tokens=cfg.engine.max_cache_tokens,
        )
        for number in range(cluster.engines if cluster else cfg.engine.processes)
    ]
    form = RequestForm(info.end_ids, info.tokenizer, info.max_positions, longest(cfg), POSITIONS)
    launcher: Launcher | None = None
    if cluster is not None:
        from shoal.cluster.server_actor import PlacedLauncher  # noqa: PLC0415 - imports Ray, an optional package

        launcher = PlacedLauncher(cluster, EngineProcess)
    return ProcessEngine(
        arguments,
        form,
        timeout=cfg.engine.timeout,
        restarts=cfg.engine.restarts,
        folder=folder,
        launcher=launcher,
    )


def log_folder(cfg: ShoalConfig, folder: Path | None) -> Path:
    """Where processes write their logs; `folder` is the run's."""
    return (folder or Path(cfg.run.root)) / "logs"


def open_cluster(cfg: ShoalConfig, beneath: ExitStack) -> Cluster | None:
    """The Ray cluster of ranks and engines, which `beneath` closes; None where Ray places nothing.

    Raises:
        ConfigError: Ray is missing, or its nodes cannot hold the run.
    """
    if cfg.learner.kind == "local" and cfg.cluster.kind == "local":
        return None
    if find_spec("ray") is None or find_spec("deepspeed") is None:
        raise ConfigError(
            "learner=deepspeed and cluster.kind=ray need Ray and DeepSpeed: pip install 'shoal-rl[cluster]'"
        )
    from shoal.cluster.cluster import Cluster  # noqa: PLC0415 - imports Ray, an optional package

    return beneath.enter_context(closing(Cluster(cfg)))


def build_learner(
    cfg: ShoalConfig, runtime: Runtime, info: ModelInfo, folder: Path | None, cluster: Cluster | None
) -> Learner:
    """The learner that `learner.kind` names, with its policy: in this process, or in the ranks of a cluster, and then
    this process loads no weights. `folder` is the run's, for log files."""
    if cfg.learner.kind == "local":
        logger.info("loading the model %s on %s", cfg.model.name, runtime.device)
        policy = open_policy(cfg, runtime, info)
        prepare_allocator(cfg.runtime, sum(one.numel() for one in policy.model.parameters()))
        return LocalLearner(policy, cfg, runtime, total_steps(cfg))
    from shoal.cluster.deepspeed_learner import DeepSpeedLearner  # noqa: PLC0415 - imports Ray, an optional package

    assert cluster is not None
    if cfg.model.name == "story":  # the ranks load what is made here
        cfg = replace(cfg, model=replace(cfg.model, name=str(story_model(cfg))))
        info = model_info(cfg)
    logger.info("loading the model %s in %d ranks", cfg.model.name, cluster.world)
    return DeepSpeedLearner(cfg, info, cluster, total_steps(cfg), log_folder(cfg, folder))


def build_weight_sync(
    cfg: ShoalConfig, learner: Learner, engine: Engine, check: SelfCheck, folder: Path | None
) -> WeightSync:
    """The weight sync that `weight_sync.kind` names. `folder` is the run's, for what is handed over on disk."""
    if isinstance(engine, TorchEngine):
        return InPlaceSync(engine, check)
    return build_server_sync(cfg, learner, engine, check, folder)


def self_check(cfg: ShoalConfig, task: Task, engine: Engine, learner: Learner) -> SelfCheck:
    """The check of `weight_sync`, on probes made from the task's own prompts and the model's own samples."""
    room = min(learner.info.max_positions, engine.max_length) - 1  # vLLM samples a token where it scores
    probe = make_probe(learner, task.train or task.evaluation, room)
    tolerance = logprob_tolerance(cfg.weight_sync, learner.runtime, learner.rounding(probe))
    return SelfCheck(engine, learner, probe, cfg.weight_sync.self_check_every, tolerance)


def decoder(info: ModelInfo) -> Callable[[list[int]], str]:
    """Token ids to the text that verifiers see; see `text_decoder`."""
    return text_decoder(info.tokenizer, info.end_ids)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch. Sampling has its own seeds and does not depend on these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_source(
    cfg: ShoalConfig, parts: Parts, monitor: Monitor, folder: Path, stopping: Callable[[], bool]
) -> GroupSource:
    """The source that `source.kind` names. `folder` is the run's; `stopping` tells whether it is to stop."""
    if cfg.source.kind == "rollout_api":
        # Imports FastAPI, which other sources do without.
        from shoal.rollout_api.trainer.source import RolloutApiSource  # noqa: PLC0415

        return RolloutApiSource(cfg, parts, monitor, folder, total_steps(cfg), stopping)
    if cfg.source.kind == "replay":
        return ReplaySource(GroupRecording(Path(cfg.source.path or "")))
    if cfg.source.kind == "async" and cfg.source.max_staleness:
        return AsyncSource(cfg, parts, monitor, total_steps(cfg), stopping)
    return SyncSource(cfg, parts, monitor)  # also for source=async without staleness, which is the same


def build_reference(cfg: ShoalConfig, parts: Parts, folder: Path) -> Reference:
    """The reference that `reference.kind` names. `folder` is the run's, for log files."""
    if cfg.reference.kind == "vllm_launch":
        return launched_reference(cfg, parts.info, parts.runtime, folder / "logs")
    if cfg.reference.kind == "vllm_endpoint":
        return endpoint_reference(cfg, parts.info)
    if cfg.learner.kind == "deepspeed":
        from shoal.cluster.reference import RanksReference  # noqa: PLC0415 - imports Ray, an optional package

        return RanksReference(parts.learner)
    return ModelReference(parts.policy, cfg, parts.runtime, parts.learner.trained_weights)


def build_run(cfg: ShoalConfig, folder: Path, stopping: Callable[[], bool], rewards: Mapping[str, Verifier]) -> Run:
    """A run that is ready for the loop, at step 0."""
    started = monotonic()
    with ExitStack() as undo:
        parts = build_parts(cfg, rewards, folder)
        undo.callback(parts.close)
        monitor = Monitor(cfg, folder, total_steps=total_steps(cfg), decode=parts.decode, started=started)
        undo.callback(monitor.close, "failed")
        for note in (*parts.runtime.notes, *cautions(cfg), *limit_notes(cfg, parts)):
            monitor.message(note)
        reference = build_reference(cfg, parts, folder) if cfg.algorithm.kl_coef else None
        if reference:
            undo.callback(reference.close)
        source = build_source(cfg, parts, monitor, folder, stopping)
        undo.callback(source.close)
        run = Run(
            cfg=cfg,
            folder=folder,
            total_steps=total_steps(cfg),
            parts=parts,
            reference=reference,
            source=source,
            evaluator=Evaluator(cfg, parts, monitor.progress),
            monitor=monitor,
            checkpoints=CheckpointStore(folder, cfg.checkpoint.keep_last),
            stopping=stopping,
        )
        undo.pop_all()
    # What is there now lives as long as the run: without this, Python's collector looks through all of it (the modules
    # of torch and transformers) every twenty small steps, which takes as long as a step or two.
    gc.freeze()
    return run
