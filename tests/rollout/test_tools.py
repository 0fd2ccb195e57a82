"""Tools: calls are read, run under a deadline, answered, and kept for the reward."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from chat_tokenizer import END, chat_tokenizer

from shoal.config import load_config
from shoal.engines.base import EngineOutput, SamplingParams
from shoal.engines.seeds import sampling_seed
from shoal.errors import ConfigError
from shoal.rewards.shaping import good_outputs
from shoal.rollout.environment import Item
from shoal.rollout.sampling import sampling_params
from shoal.rollout.tool_calls import ToolCall, as_tool, calculator, find_calls, find_tool, run_call
from shoal.rollout.tools import ToolEnvironment
from shoal.types import Completion, Prompt, StopReason


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("expression", "value"),
    [("1+2*3", "7"), ("(1+2)*3", "9"), ("-4//3", "-2"), ("7/2", "3.5"), ("6/2", "3"), ("2**10", "1024"), ("7%4", "3")],
)
def test_the_calculator_calculates(expression: str, value: str):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "a", "9**9**9", "'a'*9", "1 if 1 else 2", "1" * 201, "[].append(1)", "True"]
)
def test_the_calculator_runs_no_programs(expression: str):
    with pytest.raises((ValueError, SyntaxError)):
        calculator(expression)


def test_calls_are_found_in_a_turn_also_where_the_end_tag_is_cut_off():
    text = f"First {call('a', x=1)} then <tool_call>\n" + '{"name": "b"}'
    assert find_calls(text) == [ToolCall("a", {"x": 1}), ToolCall("b", {})]
    assert find_calls("no call") == []
    assert "no JSON" in find_calls("<tool_call>{name}</tool_call>")[0].error
    assert "a call is" in find_calls("<tool_call>[1]</tool_call>")[0].error


def slow(seconds: float) -> str:
    """Takes a while."""
    time.sleep(seconds)
    return "slept"


def broken() -> str:
    raise KeyError("oops")


def test_a_tool_that_fails_or_hangs_or_is_not_there_says_so_to_the_model():
    tools = [as_tool(calculator), as_tool(slow), as_tool(broken)]

    def run(name: str, timeout: float = 60.0, **arguments: Any) -> dict[str, Any]:
        return asyncio.run(run_call(ToolCall(name, arguments), tools, timeout))

    assert run("calculator", expression="1+1")["output"] == "2"
    assert "there is no tool 'nothing'" in run("nothing")["error"]
    assert run("broken")["error"] == "KeyError: 'oops'"
    assert "unexpected keyword" in run("calculator", wrong=1)["error"]
    hung = run("slow", timeout=0.5, seconds=1.5)
    assert hung["timed_out"] and "no answer within 0.5 s" in hung["error"]


def test_a_function_shows_itself_to_the_model():
    schema = as_tool(slow).schema["function"]
    assert (schema["name"], schema["description"]) == ("slow", "Takes a while.")
    assert schema["parameters"] == {
        "type": "object",
        "properties": {"seconds": {"type": "number"}},
        "required": ["seconds"],
    }
    assert find_tool("test_tools:slow").function is slow
    for wrong in ("nothing", "test_tools:nothing", "no_such_module:f"):
        with pytest.raises(ConfigError, match=r"environment\.tools"):
            find_tool(wrong)


class Script:
    """A model that says what is written, and keeps what it was asked."""

    def __init__(self, tokenizer: Any, *turns: str, reason: StopReason = StopReason.STOP) -> None:
        self.tokenizer, self.turns, self.reason = tokenizer, list(turns), reason
        self.asked: list[tuple[str, int, SamplingParams]] = []

    async def sample(
        self, context_ids: Sequence[int], seed: int, sampling: SamplingParams, *, group: str = ""
    ) -> EngineOutput:
        self.asked.append((self.tokenizer.decode(list(context_ids)), seed, sampling))
        ids = self.tokenizer(self.turns.pop(0) + END)["input_ids"]
        return EngineOutput("", ids, [-1.0] * len(ids), self.reason, [(0, 5)])


@pytest.fixture(scope="module")
def environment() -> ToolEnvironment:
    overrides = ["environment.tools=[calculator]", "environment.max_turns=3", "sampling.max_new_tokens=600"]
    tokenizer = chat_tokenizer()
    cfg = load_config("story", overrides)
    return ToolEnvironment(cfg, tokenizer, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))


def rollout(environment: ToolEnvironment, *turns: str) -> tuple[Completion, Script]:
    messages = [{"role": "user", "content": "16-3?"}]
    ids = environment.encode(environment.render(messages, True))
    item = Item(Prompt("p", ids, ground_truth="13", messages=messages), epoch=2)
    model = Script(environment.tokenizer, *turns)
    sampling = sampling_params(environment.cfg)
    return asyncio.run(environment.rollout(item, 1, model, sampling)), model


def test_a_conversation_with_a_tool_is_one_segment_and_its_calls_are_kept(environment: ToolEnvironment):
    done, model = rollout(environment, call("calculator", expression="16-3"), "<answer>13</answer>")
    [segment] = done.segments
    texts = environment.tokenizer.decode(segment.sampled_ids).split(END)
    assert texts[1].endswith("13") and texts[-2].endswith("<answer>13</answer>")
    trained = [id_ for id_, used in zip(segment.sampled_ids, segment.mask, strict=True) if used]
    assert (
        environment.tokenizer.decode(trained)
        == call("calculator", expression="16-3") + END + f"<answer>13</answer>{END}"
    )
    assert [entry["output"] for entry in done.info["tools"]] == ["13"]
    assert good_outputs(done), "as reward.only_good_outputs reads it"
    assert [seed for _, seed, _ in model.asked] == [sampling_seed(0, "p", 2, 1, turn) for turn in (0, 1)]
    assert model.asked[1][0].endswith("<|im_start|>tool\n13<|im_end|>\n<|im_start|>assistant\n")
    left = [sampling.max_new_tokens for _, _, sampling in model.asked]
    between = sum(1 for used in segment.mask if not used)
    assert left == [600, 600 - len(environment.encode(call("calculator", expression="16-3") + END)) - between]


def test_a_failed_call_is_no_good_output(environment: ToolEnvironment):
    done, _ = rollout(environment, call("calculator", expression="16-"), "<answer>13</answer>")
    assert done.info["tools"][0]["error"].startswith("SyntaxError")
    assert not good_outputs(done)


def test_turns_are_bounded(environment: ToolEnvironment):
    again = call("calculator", expression="1+1")
    done, model = rollout(environment, again, again, again, again)
    assert len(model.asked) == 3 and len(done.info["tools"]) == 3
    assert done.segments[0].mask[-1], "nothing is put after the last turn"
