"""Options that shape a reward beside its verifiers."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class FormatConfig:
    """A reward for the form of a completion, whatever its answer."""

    pattern: str | None = option(
        None,
        "think_answer (one <think> block, then one <answer> block, nothing else), answer_after_think (an <answer> "
        "block right after some </think>), or a regular expression that the whole completion matches. None: no format",
    )
    scale: float = option(0.0, "Added to the reward of a completion that has the format")
    gate: bool = option(False, "The verifiers' reward counts only where the completion has the format, else it is 0")


@dataclass
class LengthPenaltyConfig:
    """Taken off the reward for each token too many or too few."""

    coef: float = option(0.0, "Amount per token. 0: none", least=0)
    above: int | None = option(None, "Each token above this count is penalised. None: no such limit", least=0)
    below: int = option(0, "Each token below this count is penalised", least=0)
    sources: list[str] = option(list, "Data sets whose completions the penalty applies to. Empty: all")
