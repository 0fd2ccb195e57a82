"""Options of the run itself: its length, its folder, checkpoints and monitoring."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class RunConfig:
    """One run."""

    name: str | None = option(None, "Folder under `root` and name on trackers. None: date and time")
    root: str = option("outputs", "Where run folders are made")
    seed: int = option(0, "Seeds data order, sampling and initialisation", least=0, most=2**63 - 1)
    steps: int = option(100, "Training steps", least=0)
    episodes: int = option(0, "Length in completions instead of steps. 0: use steps", least=0)
    prompts_per_step: int = option(32, "Prompts of one step", least=1)
    group_size: int = option(8, "Completions of one prompt", least=2)
    record_groups: bool = option(False, "Write every step's groups, for source=replay")
    preflight: bool = option(True, "Start-up check: rewards, log-probs, memory, disk")
    stall_warning: float = option(
        300.0,
        "Seconds without any progress after which the run says who waits for whom (as on SIGUSR1)",
        least=0.1,
        most=1e6,
    )
    made_up_advantages: bool = option(
        False, "Train on alternating advantages where all rewards of a group are equal (set by --smoke-test)"
    )


@dataclass
class CheckpointConfig:
    """What is kept for resuming and for use."""

    every: int = option(50, "Steps between checkpoints. 0: only when interrupted", least=0)
    keep_last: int = option(3, "Checkpoints kept", least=1)
    keep_best: bool = option(
        True, "Keep the model of the best evaluation in best/: by accuracy, by mean reward where a judge is asked"
    )
    save_final: bool = option(True, "Write the trained model to model/ at the end")


@dataclass
class WandbConfig:
    """Weights & Biases."""

    enabled: bool = option(False, "Log to W&B")
    project: str = option("shoal", "Project")
    entity: str | None = option(None, "Team or user")
    group: str | None = option(None, "Group of runs")
    name: str | None = option(None, "Run name. None: the run folder's")
    mode: str = option("online", "offline writes to the run folder only", choices=("online", "offline"))


@dataclass
class MonitorConfig:
    """What is shown and written."""

    progress: str = option("auto", "Live display, plain lines, or nothing", choices=("auto", "live", "lines", "off"))
    tensorboard: bool = option(True, "Write TensorBoard events")
    curve: bool = option(True, "Write curve.png")
    samples_every: int = option(
        1, "Steps between samples/step_N.jsonl. 0: never, and no evaluations/step_N.jsonl", least=0
    )
    tokens: bool = option(
        False,
        "Write each token with its log-probs by sampler and learner, advantage and mask into samples/, for shoal view. "
        "Costs one more forward pass over the step's completions, and about 40 bytes a token on disk",
    )
    wandb: WandbConfig = option(WandbConfig, "Weights & Biases")


@dataclass
class MemoryProfileConfig:
    """Samples of the memory of this process and its children."""

    enabled: bool = option(False, "Sample memory and write memory_profile/")
    interval: float = option(1.0, "Seconds between samples", least=0.01, most=1e6)
    top_n_children: int = option(8, "Child processes listed in a sample", least=0)
    mark_steps: bool = option(True, "Record a sample at the phases of each step")
    step_interval: int = option(1, "Steps between marked steps", least=1)
    tracemalloc: bool = option(False, "Also trace Python's own allocations (slow)")
