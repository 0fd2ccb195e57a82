"""Where the thinking ends and the answer begins: the one rule of all verifiers that look for an answer."""

from __future__ import annotations

import re

# How models end their thinking: DeepSeek, Qwen and most others; other names of the tag; Magistral; Kimi; Sky-T1;
# gpt-oss, whose answer is a channel of its own.
THINKING_ENDS = (
    "</think>",
    "</thinking>",
    "</thought>",
    "</reasoning>",
    "[/THINK]",
    "◁/think▷",
    "<|end_of_thought|>",
    "<|channel|>final<|message|>",
)


ANY_END = re.compile("|".join(map(re.escape, THINKING_ENDS)))


def after_thinking(text: str) -> str:
    """What follows the last end of the thinking, without surrounding space; it may be empty. A text that has no such
    end is taken whole."""
    start = max(found + len(mark) if (found := text.rfind(mark)) >= 0 else 0 for mark in THINKING_ENDS)
    return text[start:].strip()


def answering_part(text: str) -> str:
    """The part of a completion in which its answer is looked for: what follows the thinking, or where nothing does the
    thinking itself, without surrounding space."""
    parts = (part.strip() for part in reversed(ANY_END.split(text)))
    return after_thinking(text) or next(filter(None, parts), "")
