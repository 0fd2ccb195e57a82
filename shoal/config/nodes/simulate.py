"""Options of the forecast that the dry run makes of asynchronous training."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class SimulateConfig:
    """Times from which `shoal train --dry-run source=async` forecasts speed and staleness. A run reads none of them."""

    token_seconds: float = option(
        0.0, "Seconds that an engine needs for a token of a completion. 0: no forecast", least=0
    )
    tokens: int = option(256, "Median tokens of a completion; none is longer than sampling.max_new_tokens", least=1)
    spread: float = option(0.6, "Standard deviation of the logarithm of the tokens of completions", least=0, most=5)
    slow_share: float = option(0.02, "Share of completions that are slow_factor times as long", least=0, most=1)
    slow_factor: float = option(10.0, "How many times as long they are", least=1, most=1e6)
    step_seconds: float = option(
        0.0, "Seconds that the learner needs for a step, with the weight sync", least=0, most=1e6
    )
    at_once: int = option(
        0, "Completions that one engine samples at the same speed at once; others wait. 0: all", least=0
    )
