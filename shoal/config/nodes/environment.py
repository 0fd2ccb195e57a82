"""Options of environments: how they are served, and the tools and turns of those that have some."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class EnvironmentConfig:
    """How a prompt becomes a completion, and what `shoal env` needs to serve that."""

    kind: str | None = option(
        None,
        "single_turn: one prompt, one answer. tools: conversations with `environment.tools`. package.module:Class: "
        "your own. None: tools where there are some, else single_turn. `environment=KIND` is short for it",
    )
    ahead: float = option(
        1.0, "Most batches that are queued at the server or being sampled ahead of the trainer", least=0
    )
    max_groups: int = option(256, "Most groups being sampled at a time", least=1)
    weight: float = option(
        1.0,
        "Relative weight among several environments; stock servers only report it as a suggested group count",
        least=0,
    )
    min_allocation: float = option(0.0, "Guaranteed share of every batch for this environment. 0: none", least=0)
    drop_equal: bool = option(False, "Do not send groups whose rewards are all equal")
    max_failed: int = option(100, "Rollouts that may fail before the environment stops", least=0)
    timeout: float = option(600.0, "Seconds to wait for a server or an engine before giving up", least=1, most=1e6)
    tools: list[str] = option(
        list, "Tools that the model may call: calculator, or package.module:function. Empty: one turn, no tools"
    )
    tool_timeout: float = option(10.0, "Seconds that one call of a tool may take", least=0, most=1e6)
    max_turns: int = option(8, "Most turns of the model in one completion", least=1)
