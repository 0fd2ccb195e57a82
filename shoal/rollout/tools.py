"""The environment with tools: the model calls, reads what came of it, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shoal.config import ShoalConfig
from shoal.rollout.environment import Item
from shoal.rollout.multi_turn import MultiTurnEnvironment
from shoal.rollout.tool_calls import find_calls, find_tool, run_call
from shoal.types import Message


class ToolEnvironment(MultiTurnEnvironment):
    """Tools by `environment.tools`. The chat template shows them to the model where it can; `info["tools"]` keeps every
    call, as `reward.only_good_outputs` reads it."""

    def __init__(self, cfg: ShoalConfig, tokenizer: Any, decode: Callable[[list[int]], str]) -> None:
        """Raises ConfigError where there is no such tool."""
        super().__init__(cfg, tokenizer, decode)
        self.tools = [find_tool(name) for name in cfg.environment.tools]

    @property
    def template_kwargs(self) -> dict[str, Any]:
        return {**super().template_kwargs, "tools": [tool.schema for tool in self.tools]}

    async def reply(self, item: Item, text: str, info: dict[str, Any]) -> Sequence[Message]:
        replies: list[Message] = []
        for call in find_calls(text):
            found = await run_call(call, self.tools, self.cfg.environment.tool_timeout)
            info.setdefault("tools", []).append(found)
            content = f"error: {found['error']}" if found["error"] else found["output"]
            replies.append({"role": "tool", "name": call.name, "content": content})
        return replies
