"""`/metrics` in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

COUNTERS = {
    "groups": "Groups stored since the server started.",
    "sequences": "Sequences in them.",
    "tokens": "Tokens in them.",
    "duplicates": "Groups that were posted again under the same key.",
    "refused": "Requests answered with a status from 400 to 499.",
    "unavailable": "Requests answered with 503.",
    "batches": "Batches leased for the first time.",
    "batches_short": "Of these, with fewer sequences than batch_size, since no groups fitted exactly.",
    "batches_long": "Of these, one group larger than batch_size.",
    "redelivered": "Batches handed out again.",
    "acknowledged": "Batches acknowledged, and so removed.",
    "stale": "Groups dropped as older than --max-staleness.",
}
GAUGES = {
    "step": "Batches delivered since the trainer's starting step.",
    "weights_version": "The trainer's weights.",
    "waiting_groups": "Groups that wait.",
    "waiting_sequences": "Sequences that wait.",
    "leased_batches": "Batches handed out and not acknowledged.",
    "stored_bytes": "Bytes of all stored groups, deflated.",
    "environments": "Environments registered.",
    "environments_silent": "Of these, without a sign of life for --environment-timeout seconds.",
    "commits": "Transactions of the store since the server started.",
}


def render(counters: Mapping[str, int], gauges: Mapping[str, float]) -> str:
    """All numbers, those that are still 0 too."""
    lines: list[str] = []
    for kind, texts, values, end in (("counter", COUNTERS, counters, "_total"), ("gauge", GAUGES, gauges, "")):
        for name, text in texts.items():
            full = f"shoal_api_{name}{end}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {values.get(name, 0)}"]
    return "\n".join(lines) + "\n"
