"""What a vLLM says about its load, in the names of Shoal's metrics."""

from __future__ import annotations

import re

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
