"""Reading what guests write, and watching what they use, until they are done or have gone too far."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.rewards.sandbox.launch import Guest
from shoal.rewards.sandbox.limits import MIB, Limits
from shoal.rewards.sandbox.outcome import Status
from shoal.rewards.sandbox.usage import usage_of

LOOK_EVERY = 0.05  # seconds; what a program can take in between is bounded by its rlimits


@dataclass
class Watched:
    """What came of it: the text of each stream, and why the guests were stopped (None: the one waited for ended)."""

    seconds: float = 0.0
    texts: dict[int, bytes] = field(default_factory=dict)
    stopped: Status | None = None
    detail: str = ""


def watch(
    guests: Sequence[Guest], until: Guest, streams: Sequence[int], limits: Limits, seconds: float, cpu: float
) -> Watched:
    """Waits until `until` has exited, `seconds` have passed, or the guests use more than the limits allow.

    `cpu` is the seconds of processor time that each may take. Nothing is killed here; the caller ends the guests.
    """
    started = time.monotonic()
    texts = {stream: bytearray() for stream in streams}
    result = Watched()
    look = started + LOOK_EVERY
    poll = select.poll()
    for stream in (*streams, until.exited):
        poll.register(stream, select.POLLIN)
    while True:
        now = time.monotonic()
        if now - started >= seconds:
            result.stopped, result.detail = Status.TIMEOUT, f"not done in {seconds:g} s"
            break
        if now >= look:
            look = now + LOOK_EVERY
            result.detail = _excess(guests, limits, cpu)
            if result.detail:
                result.stopped = Status.LIMIT
                break
        ready = [stream for stream, _ in poll.poll(1000 * max(0.0, min(look, started + seconds) - now))]
        for stream in ready:
            if stream != until.exited and not _read(stream, texts[stream]):
                poll.unregister(stream)
        if sum(map(len, texts.values())) > limits.output_kib * 1024:
            result.stopped, result.detail = Status.LIMIT, f"more than {limits.output_kib} KiB of output"
            break
        if until.exited in ready:
            break
    result.seconds = time.monotonic() - started
    result.texts = {stream: bytes(text) for stream, text in texts.items()}
    return result


def drain(stream: int, most: int) -> bytes:
    """What is still in a pipe to which nobody writes any more."""
    text = bytearray()
    while len(text) <= most and select.select([stream], [], [], 0)[0] and _read(stream, text):
        continue
    return bytes(text)


def _read(stream: int, text: bytearray) -> bool:
    part = os.read(stream, 65536)
    text += part
    return bool(part)


def _excess(guests: Sequence[Guest], limits: Limits, cpu: float) -> str:
    for guest in guests:
        usage = usage_of(guest.root, private_tmp=guest.first is not None)
        if usage.resident > limits.memory_mib * MIB:
            return f"more than {limits.memory_mib} MiB in all processes together"
        if usage.seconds > cpu:
            return f"more than {cpu:g} s of processor time"
        if usage.files > limits.files:
            return f"more than {limits.files} files"
    return ""
