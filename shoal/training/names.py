"""What a configuration names, looked up before a model is loaded: first what needs no network, then the rest."""

from __future__ import annotations

from collections.abc import Collection

from shoal.config import ShoalConfig
from shoal.config.mix import data_sources
from shoal.imports import import_named
from shoal.models.adapters import whole_model
from shoal.models.chat import read_framing
from shoal.models.loading import read_architecture, read_template
from shoal.rewards.judged import JUDGED
from shoal.rewards.lookup import check_options, find_verifier
from shoal.rewards.rubrics.rubric import general_criteria
from shoal.rewards.verifiers.judge import judge_template
from shoal.rollout.environment import Environment
from shoal.rollout.open import environment_kind
from shoal.rollout.tool_calls import find_tool
from shoal.tasks.dataset import check_splits
from shoal.tasks.rows import check_local


def check_names(cfg: ShoalConfig, own: Collection[str] = ()) -> None:
    """Accepts a configuration whose verifiers, tools, prompt files and local data are there.

    `own` names functions that the caller brings.

    Raises:
        ConfigError, DataError: the first that is not, in one line.
    """
    sources = data_sources(cfg.data)
    named = [*cfg.reward.verifiers, *(name for source in sources for name in source.verifiers)]
    entries = {name: find_verifier(name) for name in named if name not in own and name not in JUDGED}
    if cfg.reward.verify:
        check_options({name: given for name, given in cfg.reward.options.items() if name not in own}, entries)
    if "judge" in named:
        judge_template(cfg.reward)
    general_criteria(cfg.reward.rubric.general)
    if cfg.model.chat_template is not None:
        read_template(cfg.model.chat_template)
    for tool in cfg.environment.tools:
        find_tool(tool)
    if cfg.environment.kind is not None:
        environment_kind(cfg)
    if cfg.source.launch and ":" in cfg.source.launch:
        import_named(cfg.source.launch, "source.launch: environment")
    for source in sources:
        read_framing(source.system_prompt, source.instructions)
        for path in dict.fromkeys((source.path, source.eval_path)):
            if path is not None:
                check_local(path)


def check_places(cfg: ShoalConfig) -> None:
    """Accepts a configuration whose splits of data and whose reference are there: in local folders, on the Hub, or in
    its cache. No row and no weight is read. A run finds the same when it reads them.

    Raises:
        ConfigError, DataError: the first that is not, in one line.
    """
    if environment_kind(cfg).items is Environment.items:  # otherwise the environment has prompts of its own
        check_splits(cfg.data)
    own = cfg.reference
    if cfg.algorithm.kl_coef and own.name and own.kind != "vllm_endpoint":  # whose server knows its names
        read_architecture(*whole_model(own.name, own.revision), cfg.model.trust_remote_code, "reference.name")
