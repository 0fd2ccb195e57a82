"""The root of the configuration: one field per node."""

from dataclasses import dataclass

from shoal.config.nodes.algorithm import AlgorithmConfig
from shoal.config.nodes.cluster import ClusterConfig
from shoal.config.nodes.data import DataConfig, EvaluationConfig, RewardConfig, SamplingConfig
from shoal.config.nodes.environment import EnvironmentConfig
from shoal.config.nodes.model import ModelConfig, OptimizerConfig
from shoal.config.nodes.parts import EngineConfig, LearnerConfig, SourceConfig, WeightSyncConfig
from shoal.config.nodes.reference import ReferenceConfig
from shoal.config.nodes.run import CheckpointConfig, MemoryProfileConfig, MonitorConfig, RunConfig
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.config.options import option


@dataclass
class ShoalConfig:
    """Everything a run is told. Presets and command-line overrides fill it in."""

    resume: str | None = option(
        None,
        "Run folder to go on with from its newest checkpoint, RUN/checkpoints/step_N for an older one, or `latest`",
    )
    run: RunConfig = option(RunConfig, "The run")
    runtime: RuntimeConfig = option(RuntimeConfig, "The machine")
    model: ModelConfig = option(ModelConfig, "The policy")
    reference: ReferenceConfig = option(ReferenceConfig, "The reference policy")
    optimizer: OptimizerConfig = option(OptimizerConfig, "The optimizer")
    algorithm: AlgorithmConfig = option(AlgorithmConfig, "The algorithm")
    data: DataConfig = option(DataConfig, "The prompts")
    reward: RewardConfig = option(RewardConfig, "The rewards")
    sampling: SamplingConfig = option(SamplingConfig, "Sampling of completions")
    evaluation: EvaluationConfig = option(EvaluationConfig, "Evaluation")
    source: SourceConfig = option(SourceConfig, "Where groups come from")
    environment: EnvironmentConfig = option(EnvironmentConfig, "Environments as processes of their own: shoal env")
    engine: EngineConfig = option(EngineConfig, "The inference engine")
    learner: LearnerConfig = option(LearnerConfig, "The learner")
    cluster: ClusterConfig = option(ClusterConfig, "Placement on the nodes of a Ray cluster")
    weight_sync: WeightSyncConfig = option(WeightSyncConfig, "The weight sync")
    checkpoint: CheckpointConfig = option(CheckpointConfig, "Checkpoints")
    monitor: MonitorConfig = option(MonitorConfig, "Metrics and displays")
    memory_profile: MemoryProfileConfig = option(MemoryProfileConfig, "Memory profile")
    view: bool = option(False, "Start `shoal view` beside the run, and print its address; it ends with the run")
