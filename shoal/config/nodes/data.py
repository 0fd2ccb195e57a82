"""Options of prompts, rewards and sampling."""

from dataclasses import dataclass
from typing import Any

from shoal.config.nodes.code import CodeConfig
from shoal.config.nodes.judge import JudgeConfig
from shoal.config.nodes.reward import FormatConfig, LengthPenaltyConfig
from shoal.config.nodes.rubric import RubricConfig
from shoal.config.options import option


@dataclass
class DataConfig:
    """Where prompts come from."""

    task: str = option(
        "story",
        "Built-in task, or the layout of a data set's rows",
        choices=("story", "gsm8k", "math", "ifeval", "rlvr", "code", "messages"),
    )
    path: str | None = option(
        None, "Hub name, or a local JSONL or Parquet file, or a folder made by save_to_disk. None: the layout's own"
    )
    subset: str | None = option(None, "Configuration of the Hub data set")
    revision: str | None = option(None, "Branch, tag or commit of the Hub data set")
    split: str = option("train", "Split for training")
    eval_path: str | None = option(None, "The same as path, for evaluation. None: data.path")
    eval_split: str = option("test", "Split for evaluation")
    mix: dict[str, Any] = option(
        dict,
        "Several sources by name. An entry has `amount` and `eval_amount` (1.0: all, 0.5: half, 2.0: everything twice, "
        "an integer: that many rows, 0: none), `verifiers`, and those of task, path, subset, revision, split, "
        "eval_path, eval_split, columns, system_prompt and instructions that differ from the ones here",
    )
    columns: dict[str, str] = option(
        dict, "Names of columns in the data where they are not the layout's: {prompt: question, ground_truth: solution}"
    )
    verifiers: list[str] = option(list, "Verifiers of every row, in place of those that the rows name. Empty: theirs")
    max_prompt_tokens: int = option(512, "Longer prompts are left out, and counted", least=1)
    system_prompt: str | None = option(
        None, "System message of every prompt: the text, or a file (.txt, or .yaml with system_prompt and instructions)"
    )
    instructions: str | None = option(None, "Text put after the last user message of every prompt")
    shuffle: bool = option(True, "Draw the training prompts in a random order, a new one each epoch")
    cache: bool = option(True, "Keep tokenised data under $SHOAL_CACHE, by a hash of its content")


@dataclass
class RewardConfig:
    """How completions are judged."""

    verifiers: dict[str, float] = option(
        dict, "Weight of each verifier, by name or import path (package.module:function). Empty: the task's own"
    )
    options: dict[str, Any] = option(dict, "Options of verifiers by name: reward.options.max_length.scale=1024")
    verify: bool = option(
        True, "Run the verifiers. false: the reward consists only of format, length and stop penalties"
    )
    scale: float = option(1.0, "Factor on the verifiers' weighted sum")
    format: FormatConfig = option(FormatConfig, "Reward for the form of a completion")
    length: LengthPenaltyConfig = option(LengthPenaltyConfig, "Penalty for completions that are too long or too short")
    non_stop: float | None = option(
        None, "Reward of completions that did not stop by themselves, in place of their own. None: their own"
    )
    only_good_outputs: bool = option(
        False, "Reward 0 where no tool was called, a call failed or timed out, or none gave any output"
    )
    code: CodeConfig = option(CodeConfig, "The verifier `code`")
    timeout: float = option(
        10.0, "Seconds that one verifier call may take; after that its reward is missing", least=0, most=1e6
    )
    workers: int = option(1, "Processes for verifiers that need one", least=1, most=1024)
    memory_gib: float = option(
        4.0,
        "Memory limit of one such process; if a verifier exceeds it, its reward is missing. 0: no limit",
        least=0,
        most=1e6,
    )
    max_missing: float = option(0.5, "The run stops if the share of missing rewards in a step exceeds this", least=0)
    judge: JudgeConfig = option(JudgeConfig, "The judge")
    rubric: RubricConfig = option(RubricConfig, "The verifier `rubric`")


@dataclass
class SamplingConfig:
    """How completions are sampled."""

    max_new_tokens: int = option(256, "Most tokens of a completion", least=1)
    temperature: float = option(1.0, "Softmax temperature. 0: greedy (evaluation only)", least=0)
    top_p: float = option(1.0, "Sample from the smallest set of tokens with this probability", least=0)
    top_k: int = option(0, "Sample from the k likeliest tokens. 0: all", least=0)
    stop: list[str] = option(list, "Strings that end a completion; they stay in its tokens")


@dataclass
class EvaluationConfig:
    """Accuracy on held-out prompts."""

    every: int = option(0, "Steps between evaluations. 0: none between start and end", least=0)
    at_start: bool = option(True, "Evaluate before the first step")
    at_end: bool = option(True, "Evaluate after the last step")
    prompts: int = option(256, "Held-out prompts to evaluate on, drawn once. 0: all", least=0)
    samples: int = option(1, "Completions per prompt; pass@k is reported for k = 1, 2, 4 ... up to this", least=1)
    sampling: dict[str, Any] = option(dict, "Overrides of `sampling` in evaluations, such as temperature: 0")
