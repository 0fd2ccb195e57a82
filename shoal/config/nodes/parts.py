"""Options of the four seams: where groups come from, the engine, the learner, the weight sync."""

from dataclasses import dataclass

from shoal.config.nodes.simulate import SimulateConfig
from shoal.config.nodes.vllm import VllmConfig
from shoal.config.options import option


@dataclass
class SourceConfig:
    """Where scored groups come from."""

    kind: str = option(
        "sync",
        "sync: sample in each step. async: sample while the learner trains. replay: groups recorded by an earlier run. "
        "rollout_api: groups posted by environment processes",
        choices=("sync", "async", "replay", "rollout_api"),
    )
    max_staleness: int = option(
        4,
        "async: most trained batches between the oldest weights that a completion was sampled with and those that are "
        "trained on it. Never exceeded. 0: as sync",
        least=0,
    )
    lead: int = option(
        1, "async: steps that sampling runs ahead of training; sets the mean staleness. At most max_staleness", least=0
    )
    order: str = option(
        "oldest",
        "async: which finished groups are trained on first, where the bound leaves a choice",
        choices=("oldest", "first_come"),
    )
    at_bound: str = option(
        "wait",
        "async: what the learner does if a group must be trained on now and is not finished. wait: it waits. cut: the "
        "group's unfinished completions are ended, and masked as truncated",
        choices=("wait", "cut"),
    )
    path: str | None = option(None, "Run folder whose recorded groups are replayed (run.record_groups=true there)")
    url: str = option("http://127.0.0.1:8000", "Server of scored groups: shoal serve api, or Atropos's run-api")
    batch_size: int = option(0, "Sequences per batch. 0: run.prompts_per_step x run.group_size", least=0)
    seq_len: int = option(
        0, "Most tokens of a sequence, prompt included. 0: data.max_prompt_tokens + sampling.max_new_tokens", least=0
    )
    overlong: str = option(
        "drop",
        "What happens to longer sequences. drop: drop the whole group. truncate: cut them. mask: count them in their "
        "group's statistics without training on them",
        choices=("drop", "truncate", "mask"),
    )
    max_unusable: float = option(
        0.5, "The run stops if the share of unusable groups among the last 100 exceeds this. 1: never", least=0
    )
    timeout: float = option(600.0, "Seconds to wait for a server or a batch before the run stops", least=1, most=1e6)
    launch: str | None = option(
        None,
        "Start the server and this environment (a name or package.module:Class) with the run, and stop them when it "
        "ends",
    )
    simulate: SimulateConfig = option(SimulateConfig, "async: times for the forecast of --dry-run")


@dataclass
class EngineConfig:
    """What turns prompts into tokens and log-probs."""

    kind: str = option(
        "torch",
        "torch: built in, any device. vllm: vLLM in this process. vllm_server: vLLM behind HTTP, started by the run "
        "or already running",
        choices=("torch", "vllm", "vllm_server"),
    )
    max_batch: int = option(256, "Most completions decoded at a time", least=1)
    max_cache_tokens: int = option(0, "Most tokens held in the KV cache. 0: no bound but max_batch", least=0)
    processes: int = option(
        0, "engine=torch: processes of its own that sample. 0: none, it samples in the learner's process", least=0
    )
    threads: int = option(1, "CPU threads of each of engine.processes", least=1, most=256)
    timeout: float = option(
        600.0,
        "Seconds without any completion, or for one call, before one of engine.processes counts as hanging",
        least=1,
        most=1e6,
    )
    restarts: int = option(5, "Most restarts of engine.processes in a run; then the run stops", least=0)
    num_devices: int = option(
        0,
        "GPUs of the engine's servers or processes, placed beside the learner's. 0: one for each of them (times "
        "engine.vllm.tensor_parallel), or as many as there are",
        least=0,
        most=4096,
    )
    devices: list[int] = option(list, "The same by hand, as torch numbers them; the first server has the first of them")
    serve_host: str = option(
        "127.0.0.1", "With source=rollout_api: address on which the engine is served to environments"
    )
    serve_port: int = option(
        9001, "Port on which the engine is served. 0: a free one, which is logged", least=0, most=65535
    )
    vllm: VllmConfig = option(VllmConfig, "vLLM")


@dataclass
class LearnerConfig:
    """What turns a batch into optimizer steps."""

    kind: str = option(
        "local",
        "local: one process, one device. deepspeed: Ray actors, one a device, with ZeRO",
        choices=("local", "deepspeed"),
    )
    num_devices: int = option(0, "Devices that train, the first ones; of deepspeed its ranks. 0: 1", least=0, most=4096)
    devices: list[int] = option(list, "The same by hand, as torch numbers the GPUs that this process sees")
    zero_stage: int = option(
        2,
        "deepspeed: what the ranks divide. 0: nothing. 1: optimizer states. 2: gradients too. 3: weights too",
        least=0,
        most=3,
    )
    offload_optimizer: bool = option(False, "deepspeed: optimizer states in the CPU's memory (stages 1 to 3)")
    offload_parameters: bool = option(False, "deepspeed: weights in the CPU's memory (stage 3)")
    deepspeed_config: str | None = option(
        None, "deepspeed: a JSON file of DeepSpeed's own options, for what no key here says"
    )
    timeout: float = option(
        1800.0, "deepspeed: seconds until the ranks must have started, or done a step", least=1, most=1e6
    )
    restarts: int = option(
        5,
        "deepspeed: most restarts of the ranks in a run, each from the last checkpoint after a rank has died or hung; "
        "then the run stops. Needs checkpoint.every above 0",
        least=0,
    )
    micro_batch_tokens: int = option(8192, "Forwarded tokens (padding included) of one micro-batch", least=1)
    micro_batch_size: int = option(0, "Completions of one micro-batch; 0: bounded by tokens only", least=0)
    packing: str = option("auto", "Several sequences in one row, without padding", choices=("auto", "on", "off"))
    pack_length: int = option(0, "Tokens of a packed row. 0: chosen from the batch", least=0)
    share_prefix: bool = option(
        True, "Compute the shared prefixes of a group's sequences once (exact; with sdpa and eager)"
    )
    logprob_chunk: int = option(2048, "Tokens whose logits are in memory at a time", least=1)
    skip_zero_advantage: bool = option(
        True, "Skip completions with zero advantage if this does not change the gradient"
    )


@dataclass
class WeightSyncConfig:
    """What gets version n's weights into the engine."""

    kind: str = option(
        "in_place",
        "in_place: engine and learner share one module. For vLLM and engine.processes: broadcast: a process group. "
        "shared: shared memory. For vLLM: lora: adapter hot-swap. restart: checkpoint and restart",
        choices=("in_place", "broadcast", "shared", "lora", "restart"),
    )
    every: int = option(
        1, "Trained batches between weight updates of the engine; in between it samples with the older version", least=1
    )
    in_flight: str = option(
        "drain",
        "What happens to running requests at a weight update. drain: finish first. keep: continue with the new "
        "weights. abort: restart them",
        choices=("drain", "keep", "abort"),
    )
    timeout: float = option(300.0, "Seconds that any part of a weight update may take", least=1, most=1e6)
    host: str = option("127.0.0.1", "broadcast: this machine's address, as the engine's workers reach it")
    delta: bool = option(
        False,
        "broadcast: send positions and values of what has changed since the version that the engine holds. For weights "
        "in 16 bits, of which a step changes a few percent",
    )
    full_every: int = option(50, "With delta: all weights are sent at every so many updates", least=1)
    bridge: str | None = option(
        None, "shared: folder of the bridge that a server started by hand has written. None: $LOGDIR"
    )
    self_check_every: int = option(
        10,
        "Syncs between checks of the engine's log-probs against the learner's. The first two always are. 0: no others",
        least=0,
    )
    self_check_tolerance: float = option(
        0.0,
        "Largest difference of log-probs allowed, relative to those beyond -1. 0: by dtype (1e-4 in float32, 0.2 in 16 "
        "bits, more where rounding moves this model more)",
        least=0,
    )
