"""Tools: what the model may call, how a call is read from its text, and how it is run."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from ast import (
    Add,
    BinOp,
    Constant,
    Div,
    Expression,
    FloorDiv,
    Mod,
    Mult,
    Pow,
    Sub,
    UAdd,
    UnaryOp,
    USub,
    expr,
    operator,
    parse,
    unaryop,
)
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from shoal.errors import ConfigError
from shoal.imports import import_named
from shoal.rollout.tool_threads import in_own_thread

CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
LONGEST_OUTPUT = 8192


@dataclass(frozen=True)
class Tool:
    """A function that the model may call, with what a chat template shows of it."""

    name: str
    function: Callable[..., Any]
    schema: dict[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """What the model asked for; `error` says what is wrong with how it asked."""

    name: str
    arguments: dict[str, Any]
    error: str = ""


def find_tool(name: str) -> Tool:
    """A built-in tool by name, or a function by its import path (package.module:function).

    Raises:
        ConfigError: there is none.
    """
    if name in BUILT_IN:
        return as_tool(BUILT_IN[name])
    if ":" not in name:
        raise ConfigError(
            f"environment.tools: there is no tool {name!r} (built in: {', '.join(BUILT_IN)}); your own is "
            "package.module:function"
        )
    function = import_named(name, "environment.tools: tool")
    if not callable(function):
        raise ConfigError(f"environment.tools: tool {name!r}: {type(function).__name__} is no function")
    return as_tool(function)


def as_tool(function: Callable[..., Any]) -> Tool:
    """A function as a tool: its docstring describes it, its annotations are the parameters' types."""
    hints = inspect.signature(function, eval_str=True).parameters
    parameters = {
        "type": "object",
        "properties": {name: {"type": TYPES.get(hint.annotation, "string")} for name, hint in hints.items()},
        "required": [name for name, hint in hints.items() if hint.default is inspect.Parameter.empty],
    }
    text = inspect.getdoc(function) or ""
    schema = {"name": function.__name__, "description": text, "parameters": parameters}
    return Tool(function.__name__, function, {"type": "function", "function": schema})


def find_calls(text: str) -> list[ToolCall]:
    """The calls in a turn: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes and Qwen write them.

    A call that a stop string or the end of the text cuts off after its JSON counts.
    """
    calls = []
    for match in CALL.finditer(text):
        try:
            value = json.loads(match[1])
        except ValueError as error:
            calls.append(ToolCall("", {}, f"the call is no JSON: {error}"))
            continue
        name, arguments = (value.get("name"), value.get("arguments", {})) if isinstance(value, dict) else (None, None)
        if isinstance(name, str) and isinstance(arguments, dict):
            calls.append(ToolCall(name, arguments))
        else:
            calls.append(ToolCall("", {}, 'a call is {"name": "...", "arguments": {...}}'))
    return calls


async def run_call(call: ToolCall, tools: Sequence[Tool], timeout: float) -> dict[str, Any]:
    """Runs one call in a thread, or as a coroutine; gives what `info["tools"]` keeps of it: `name`, `arguments`,
    `output`, `error`, `timed_out`, `seconds`. A tool that fails tells the model how."""
    started = monotonic()
    found = {"name": call.name, "arguments": call.arguments, "output": "", "error": call.error, "timed_out": False}
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if not call.error and tool is None:
        found["error"] = f"there is no tool {call.name!r}; there are {', '.join(tool.name for tool in tools)}"
    elif tool is not None and not call.error:
        try:
            found["output"] = str(await _call(tool, call.arguments, timeout))[:LONGEST_OUTPUT]
        except TimeoutError:
            found |= {"timed_out": True, "error": f"no answer within {timeout:g} s"}
        except Exception as error:  # noqa: BLE001 the tool is somebody's code: its failure is the model's to read
            found["error"] = f"{type(error).__name__}: {error}"[:LONGEST_OUTPUT]
    return {**found, "seconds": monotonic() - started}


async def _call(tool: Tool, arguments: dict[str, Any], timeout: float) -> Any:
    """Raises TimeoutError at the deadline, and whatever the tool raises."""
    if inspect.iscoroutinefunction(tool.function):
        return await asyncio.wait_for(tool.function(**arguments), timeout)
    return await in_own_thread(partial(tool.function, **arguments), tool.name, timeout)


def calculator(expression: str) -> str:
    """Works out an arithmetic expression, such as (2 + 3) * 4."""
    if len(expression) > 200:
        raise ValueError("longer than 200 characters")
    value = _value(parse(expression, mode="eval"))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


BINARY: dict[type[operator], Callable[[Any, Any], Any]] = {
    Add: lambda a, b: a + b,
    Sub: lambda a, b: a - b,
    Mult: lambda a, b: a * b,
    Div: lambda a, b: a / b,
    FloorDiv: lambda a, b: a // b,
    Mod: lambda a, b: a % b,
}
UNARY: dict[type[unaryop], Callable[[Any], Any]] = {UAdd: lambda a: a, USub: lambda a: -a}


def _value(node: Expression | expr) -> Any:
    if isinstance(node, Expression):
        return _value(node.body)
    if isinstance(node, Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, Pow) and abs(right) <= 64 and abs(left) <= 10**6:
            return left**right
        if type(node.op) in BINARY:
            return BINARY[type(node.op)](left, right)
    raise ValueError("only numbers, + - * / // % ** and brackets")


BUILT_IN: dict[str, Callable[..., Any]] = {"calculator": calculator}
"""Tools by the name that environment.tools gives. A new one is a function, and a line here."""
