"""What the dry run of `source=async` forecasts: speed and staleness, from the times in `source.simulate`."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from random import Random

from shoal.config import ShoalConfig
from shoal.config.device_keys import own_processes
from shoal.rollout.simulation import Flow, Lengths, Outcome, simulate

STEPS = 300
OTHERS = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (8, 2))  # source.max_staleness and source.lead to compare with


def forecast_lines(config: ShoalConfig) -> Iterator[str]:
    """A table of the run's `source.max_staleness` and `source.lead` among others, each against `source=sync`."""
    if config.source.kind != "async":
        return
    yield "\nForecast of source=async"
    if not config.source.simulate.token_seconds:
        yield (
            "  set source.simulate.token_seconds and source.simulate.step_seconds, as a run's metrics give them, for "
            "the speed and staleness to expect"
        )
        return
    engines = number_of_engines(config)
    chosen = (config.source.max_staleness, config.source.lead)
    every = config.weight_sync.every
    rows = sorted({chosen, *(one for one in OTHERS if every <= one[1] + 1)})
    sync = forecast(config, 0, 0, engines).seconds
    yield (
        f"  simulated: {STEPS} steps of {config.run.prompts_per_step} groups of {config.run.group_size} completions; "
        f"{engines} engine{'s' if engines > 1 else ''}; a step of source=sync takes {sync / STEPS:.3g} s"
    )
    yield "  max_staleness  lead  x sync  mean age  oldest  learner waits  engines idle"
    for bound, lead in rows:
        mark = "  as configured" if (bound, lead) == chosen else ""
        yield row(bound, lead, forecast(config, bound, lead, engines), sync) + mark
    if config.source.simulate.at_once:
        yield row(*chosen, forecast(config, *chosen, 2 * engines), sync) + f"  with {2 * engines} engines"


def number_of_engines(config: ShoalConfig) -> int:
    """Servers or processes that the run would start or ask."""
    return own_processes(config)[0] or len(config.engine.vllm.endpoints) or 1


def forecast(config: ShoalConfig, max_staleness: int, lead: int, engines: int) -> Outcome:
    """A simulated run with these; the same random lengths every time."""
    run, times = config.run, config.source.simulate
    lengths = Lengths(
        times.tokens * times.token_seconds,
        run.group_size,
        times.spread,
        times.slow_share,
        times.slow_factor,
        config.sampling.max_new_tokens * times.token_seconds,
    )
    random = Random(0)
    every = config.weight_sync.every if max_staleness else 1
    room = max(engines * times.at_once // run.group_size, 1) if times.at_once else inf
    return simulate(
        Flow(run.prompts_per_step, max_staleness, lead, every, config.source.order),
        lambda number: lengths.fate(random),
        steps=STEPS,
        step_seconds=times.step_seconds,
        room=room,
    )


def row(max_staleness: int, lead: int, outcome: Outcome, sync: float) -> str:
    """A line of the table."""
    waits = outcome.learner_waited / outcome.seconds
    idle = outcome.engines_idle / outcome.seconds
    return (
        f"  {max_staleness:>13} {lead:>5} {sync / outcome.seconds:>7.2f} {outcome.mean_age:>9.2f} "
        f"{max(outcome.ages):>7} {waits:>14.0%} {idle:>13.0%}"
    )
