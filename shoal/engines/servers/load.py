"""The load of an engine's servers, in the names of Shoal's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.engines.base import EngineOutput

GAUGES = ("running", "waiting", "kv_cache_use")
COUNTERS = ("prefix_queries", "prefix_hits", "prompt_tokens")


class LoadMetrics:
    """Counters over one step, over all servers of an engine."""

    def __init__(self) -> None:
        self.before: list[Mapping[str, float]] = []
        self.tokens = self.restarts = 0
        self.seconds = 0.0
        self.highest: dict[str, float] = {}
        self.now: Sequence[Mapping[str, float]] = ()

    def count(self, output: EngineOutput) -> None:
        """Takes note of a completion."""
        self.tokens += len(output.token_ids)

    def look(self, servers: Sequence[Mapping[str, float]]) -> None:
        """Takes note of a moment of the servers' load."""
        self.now = servers
        for name in GAUGES:
            values = [one.get(name, 0.0) for one in servers]
            now = max(values, default=0.0) if name == "kv_cache_use" else sum(values)
            self.highest[name] = max(self.highest.get(name, 0.0), now)

    def of_server(self, number: int) -> str:
        """The last look at a server's load in words, such as `3 running, 9 waiting, KV cache 40% full`."""
        found = self.now[number] if number < len(self.now) else {}
        words = [f"{found[name]:.0f} {name}" for name in ("running", "waiting") if name in found]
        words += [f"KV cache {found['kv_cache_use']:.0%} full"] if "kv_cache_use" in found else []
        return ", ".join(words)

    def take(self, servers: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The counters since the last call, and starts anew.

        `tokens` sampled; `seconds` in which requests were in flight; `tokens_per_second`; `prompt_tokens` asked;
        `prefix_hit_rate`, of the prompts' tokens that were looked up those found in the prefix cache; the highest
        `running` and `waiting` requests and `kv_cache_use` (share of one server's cache) that were seen; `restarts`
        of servers that died.
        """
        change = {
            name: sum(one.get(name, 0.0) for one in servers) - sum(one.get(name, 0.0) for one in self.before)
            for name in COUNTERS
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
