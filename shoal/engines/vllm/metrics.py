"""What a vLLM says about its load, in the names of Shoal's metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from shoal.engines.base import EngineOutput

GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_use",
}
COUNTERS = {
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:prompt_tokens_total": "prompt_tokens",
}
LINE = re.compile(r"^([a-z_:]+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def parse_metrics(text: str) -> dict[str, float]:
    """The values that Shoal reports, from Prometheus' text format; labelled values are added up."""
    names = GAUGES | COUNTERS
    found: dict[str, float] = {}
    for name, value in LINE.findall(text):
        if name in names:
            found[names[name]] = found.get(names[name], 0.0) + float(value)
    return found


def read_process_metrics() -> dict[str, float]:
    """The metrics of the vLLM in this process."""
    from prometheus_client import generate_latest  # noqa: PLC0415 - comes with vLLM

    return parse_metrics(generate_latest().decode())


class LoadMetrics:
    """Counters over one step, over all servers of an engine."""

    def __init__(self) -> None:
        self.before: list[Mapping[str, float]] = []
        self.tokens = self.restarts = 0
        self.seconds = 0.0
        self.highest: dict[str, float] = {}

    def count(self, output: EngineOutput) -> None:
        """Takes note of a completion."""
        self.tokens += len(output.token_ids)

    def look(self, servers: Sequence[Mapping[str, float]]) -> None:
        """Takes note of a moment of the servers' load."""
        for name in GAUGES.values():
            values = [one.get(name, 0.0) for one in servers]
            now = max(values, default=0.0) if name == "kv_cache_use" else sum(values)
            self.highest[name] = max(self.highest.get(name, 0.0), now)

    def take(self, servers: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The counters since the last call, and starts anew.

        `tokens` sampled; `seconds` in which requests were in flight; `tokens_per_second`; `prompt_tokens` asked;
        `prefix_hit_rate`, of the prompts' tokens that were looked up those found in the prefix cache; the highest
        `running` and `waiting` requests and `kv_cache_use` (share of one server's cache) that were seen; `restarts`
        of servers that died.
        """
        change = {
            name: sum(one.get(name, 0.0) for one in servers) - sum(one.get(name, 0.0) for one in self.before)
            for name in COUNTERS.values()
        }
        found = {
            "tokens": float(self.tokens),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "prompt_tokens": max(change["prompt_tokens"], 0.0),
            "prefix_hit_rate": max(change["prefix_hits"], 0.0) / max(change["prefix_queries"], 1.0),
            "restarts": float(self.restarts),
            **self.highest,
        }
        self.before = list(servers)
        self.tokens = self.restarts = 0
        self.seconds = 0.0
        self.highest = {}
        return found
