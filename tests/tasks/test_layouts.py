"""Every layout from a small local file, and what is wrong with a row said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, Value
from transformers import PreTrainedTokenizerFast

from shoal.config import ShoalConfig
from shoal.errors import DataError
from shoal.rewards.answers.extract import last_boxed
from shoal.rewards.base import REGISTRY, VerifierEntry
from shoal.tasks.dataset import LAYOUTS, build_task
from shoal.tasks.layouts.math import right_answer
from shoal.types import Prompt

WriteRows = Callable[..., str]

IFEVAL = {
    "prompt": "Write two lines without a comma.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
    "kwargs": [{}, {"num_sentences": 2, "relation": "at least"}],
}
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2+3?"},
    {"role": "assistant", "content": "5"},
]
TRUTHS = {"gsm8k": "5", "f1": ["5", "five"]}
ASSERTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
PAIRS = [{"input": "1 2\n", "output": "3\n"}, {"input": "", "output": "0\n"}]


@pytest.fixture(autouse=True)
def every_named_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that these rows give, whether or not their verifiers can run here."""
    for name in ("math", "ifeval", "code", "string_match", "f1"):  # some need an optional package
        monkeypatch.setitem(REGISTRY, name, VerifierEntry(name, lambda submission: 1.0, bounded=True))


@pytest.fixture
def read(tmp_path: Path, write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Prompt]:
    """The first prompt of rows in a layout, from a JSONL or a Parquet file."""

    def first(task: str, *rows: dict[str, Any], parquet: bool = False, **data: Any) -> Prompt:
        cfg = ShoalConfig()
        cfg.data.task = task
        if parquet:
            cfg.data.path = str(tmp_path / "rows.parquet")
            Dataset.from_list(list(rows)).to_parquet(cfg.data.path)
        else:
            cfg.data.path = write_rows("rows.jsonl", rows)
        for name, value in data.items():
            setattr(cfg.data, name, value)
        return build_task(cfg, tokenizer).train[0]

    return first


Read = Callable[..., Prompt]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "1+1?", "solution": "So it is $\\boxed{2}$."}, "2"),
        ({"problem": "1/2?", "solution": "First \\boxed{1}, then \\boxed{\\frac{1}{2}}"}, "\\frac{1}{2}"),
        ({"question": "1+1?", "answer": "2"}, "2"),
        ({"question": "1+1?", "answer": 2}, "2"),
        ({"problem": "1+1?", "solution": "no box", "answer": "$2$"}, "$2$"),
        ({"problem": "1+1?", "solution": "It is \\boxed 2."}, "2"),
    ],
)
def test_mathematics_comes_with_a_solution_or_an_answer(read: Read, row: dict[str, Any], answer: str) -> None:
    prompt = read("math", row)
    assert prompt.ground_truth == answer
    assert last_boxed(right_answer(prompt)) == answer


@pytest.mark.parametrize("parquet", [False, True])
def test_instructions_keep_only_the_arguments_that_were_given(read: Read, parquet: bool) -> None:
    # A Parquet column gives every row all fields, empty where the row had none.
    other = {**IFEVAL, "kwargs": [{"keywords": ["a"]}, {}]}
    prompt = read("ifeval", IFEVAL, other, parquet=parquet)
    assert prompt.ground_truth == {name: IFEVAL[name] for name in ("instruction_id_list", "kwargs")}


def test_instructions_may_have_their_arguments_as_json(read: Read) -> None:
    row = {**IFEVAL, "kwargs": [json.dumps(kwargs) for kwargs in IFEVAL["kwargs"]]}
    assert read("ifeval", row).ground_truth["kwargs"] == IFEVAL["kwargs"]


def test_a_verifiable_row_names_its_verifier_and_loses_the_answer_at_its_end(read: Read) -> None:
    prompt = read("rlvr", {"messages": CHAT, "ground_truth": "5", "dataset": "gsm8k"})
    assert (prompt.ground_truth, prompt.verifiers) == ("5", ["gsm8k"])
    assert prompt.messages == CHAT[:2]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("MATH", "math"), ("string_matcher", "string_match"), ("string_f1", "f1")]
)
def test_verifiers_with_another_name_there_are_found(read: Read, theirs: str, ours: str) -> None:
    assert read("rlvr", {"messages": CHAT, "ground_truth": "5", "dataset": theirs}).verifiers == [ours]


def test_a_row_with_several_verifiers_has_a_ground_truth_for_each(read: Read) -> None:
    prompt = read("rlvr", {"messages": CHAT, "ground_truth": ["5", "6"], "dataset": ["gsm8k", "math"]})
    assert (prompt.ground_truth, prompt.verifiers) == ({"gsm8k": "5", "math": "6"}, ["gsm8k", "math"])
    prompt = read("rlvr", {"messages": CHAT, "ground_truth": ["5"], "dataset": ["gsm8k"]})
    assert (prompt.ground_truth, prompt.verifiers) == ("5", ["gsm8k"])


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        ({"prompt": "Add.", "tests": ASSERTS}, ASSERTS),
        ({"prompt": "Add.", "tests": json.dumps(ASSERTS)}, ASSERTS),
        ({"question": "Add.", "tests": "assert add(1, 2) == 3"}, ASSERTS[:1]),
        ({"prompt": "Add.", "tests": PAIRS}, PAIRS),
        ({"messages": CHAT, "ground_truth": PAIRS}, PAIRS),
        ({"question": "Add.", "input_output": json.dumps({"inputs": ["1 2\n", ""], "outputs": ["3\n", "0\n"]})}, PAIRS),
        ({"prompt": "Add.", "tests": [{"input": ["1", "2"], "output": 3}]}, [{"input": "1\n2", "output": "3"}]),
    ],
)
def test_tests_are_statements_or_pairs_of_input_and_output(read: Read, row: dict[str, Any], tests: list[Any]) -> None:
    assert read("code", row).ground_truth == tests


def test_a_text_that_does_not_name_the_function_is_shown_its_tests(read: Read) -> None:
    prompt = read("code", {"text": "Add two numbers.", "test_list": ASSERTS})
    assert prompt.messages[0]["content"] == "Add two numbers.\n\nIt must pass tests like:\n" + "\n".join(ASSERTS)


@pytest.mark.parametrize(
    ("row", "truth", "verifiers"),
    [
        (
            {"prompt": "2+3?", "ground_truth": "5", "verifiers": ["gsm8k", "exact_answer"]},
            "5",
            ["gsm8k", "exact_answer"],
        ),
        ({"prompt": CHAT[:2], "ground_truth": 5, "verifier": "gsm8k"}, 5, ["gsm8k"]),
        ({"messages": CHAT, "ground_truth": TRUTHS, "verifiers": ["gsm8k", "f1"]}, TRUTHS, ["gsm8k", "f1"]),
    ],
)
def test_a_general_row_says_itself_what_is_asked_and_who_judges(
    read: Read, row: dict[str, Any], truth: Any, verifiers: list[str]
) -> None:
    prompt = read("messages", row)
    assert (prompt.ground_truth, prompt.verifiers) == (truth, verifiers)
    assert prompt.messages[-1] == {"role": "user", "content": "2+3?"}


def test_rows_of_one_file_may_have_ground_truths_of_several_types(read: Read) -> None:
    rows = [{"prompt": "?", "ground_truth": truth, "verifier": "gsm8k"} for truth in ("5", 5, ["5"], {"a": 1})]
    assert read("messages", *rows).ground_truth == "5"


def test_verifiers_of_the_configuration_replace_the_rows(read: Read) -> None:
    row = {"messages": CHAT, "ground_truth": "5", "dataset": "no_such"}
    assert read("rlvr", row, verifiers=["exact_answer"]).verifiers == ["exact_answer"]


def test_the_evaluation_has_ids_of_its_own_where_both_sides_have_a_split_of_one_name(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    cfg = ShoalConfig()
    row = {"messages": CHAT, "ground_truth": "5", "dataset": "gsm8k"}
    cfg.data.task, cfg.data.path, cfg.data.eval_path = (
        "rlvr",
        write_rows("a.jsonl", [row]),
        write_rows("b.jsonl", [row]),
    )
    cfg.data.eval_split = "train"
    task = build_task(cfg, tokenizer)
    assert task.train[0].id != task.evaluation[0].id


CHAT_ROW = {"messages": CHAT, "ground_truth": "5", "dataset": "gsm8k"}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("math", {"problem": "?", "solution": "It is 2."}, "row 0: the solution has no \\boxed answer"),
        ("math", {"problem": "?", "proof": ""}, "no column answer or solution; it has problem, proof"),
        ("ifeval", {**IFEVAL, "kwargs": [{}]}, "row 0: instruction_id_list and kwargs must be lists of one length"),
        ("ifeval", {**IFEVAL, "instruction_id_list": [], "kwargs": []}, "and not empty"),
        ("rlvr", {**CHAT_ROW, "dataset": "gsm8kk"}, "no verifier is named 'gsm8kk'; the nearest is 'gsm8k'"),
        ("rlvr", {**CHAT_ROW, "dataset": []}, "dataset names no verifier"),
        ("rlvr", {**CHAT_ROW, "dataset": 7}, "verifiers are named by a text or a list of texts, not '7'"),
        ("rlvr", {**CHAT_ROW, "dataset": ["gsm8k", "math"]}, "dataset names 2 verifiers, so ground_truth must be"),
        ("rlvr", {**CHAT_ROW, "messages": CHAT[2:]}, "the messages ask nothing"),
        ("rlvr", {**CHAT_ROW, "messages": []}, "the messages ask nothing"),
        ("rlvr", {**CHAT_ROW, "messages": [{"role": "human", "content": "?"}]}, "a message needs a role"),
        ("rlvr", {**CHAT_ROW, "messages": 3}, "the messages must be a text or a list"),
        ("code", {"prompt": "?", "tests": []}, "the tests must be assert statements"),
        ("code", {"prompt": "?", "tests": [{"input": "1"}]}, "the tests must be assert statements"),
        ("code", {"prompt": "?", "tests": {"inputs": ["1"], "outputs": []}}, "must be lists of one length"),
        ("messages", {"prompt": "?", "ground_truth": "5"}, "prompt messages/train/0 names no verifier: give its row"),
        ("messages", {"prompt": "?", "ground_truth": None, "verifier": "gsm8k"}, "row 0: no value for ground_truth"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line_with_its_place(
    read: Read, task: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(task, row)
    line = str(caught.value)
    assert message in line
    assert "\n" not in line
    assert "rows.jsonl" in line or f"{task}/train/0" in line


def test_a_file_of_one_json_list_reads_as_its_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([CHAT_ROW, CHAT_ROW], indent=1))
    cfg = ShoalConfig()
    cfg.data.task, cfg.data.path = "rlvr", str(path)
    assert len(build_task(cfg, tokenizer).train) == 2
    path.write_text("[3]")
    with pytest.raises(DataError, match=r"rows\.json, row 0: cannot be read: a row is an object"):
        build_task(cfg, tokenizer)


def test_a_broken_line_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(CHAT_ROW) + "\n\n{\n")
    cfg = ShoalConfig()
    cfg.data.task, cfg.data.path = "rlvr", str(path)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: cannot be read as JSON"):
        build_task(cfg, tokenizer)


@pytest.mark.parametrize("task", sorted(set(LAYOUTS) - {"story", "gsm8k", "ifeval"}))
def test_a_layout_without_a_data_set_of_its_own_asks_for_the_path(
    task: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    cfg = ShoalConfig()
    cfg.data.task = task
    with pytest.raises(DataError, match=f"data.task={task} says how rows look, not where they are: set data.path"):
        build_task(cfg, tokenizer)


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}],
}
ASKS_A_TOOL = [
    {"role": "user", "content": "2+3?"},
    CALL,
    {"role": "tool", "name": "add", "content": "5"},
    {"role": "user", "content": "Twice that?"},
]


@pytest.mark.parametrize("parquet", [False, True])
def test_calls_of_tools_and_every_field_that_the_template_reads_reach_the_prompt(
    read: Read, tokenizer: PreTrainedTokenizerFast, parquet: bool
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }} {{ m.name or '' }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments.b }}>{% endfor %}{% endfor %}"
    )
    prompt = read("messages", {"messages": ASKS_A_TOOL, "ground_truth": "10", "verifiers": ["f1"]}, parquet=parquet)
    assert tokenizer.decode(prompt.token_ids) == "[user ]2+3?[assistant ]<add 3>[tool add]5[user ]Twice that?"


def test_calls_that_the_template_would_leave_out_are_refused(read: Read) -> None:
    with pytest.raises(DataError, match=r"tool_calls, which the chat template does not read"):
        read("messages", {"messages": ASKS_A_TOOL, "ground_truth": "10", "verifiers": ["f1"]})


@pytest.mark.parametrize(("given", "truth"), [(["2", "3"], ["2", "3"]), ([2, "\\boxed{3}"], ["2", "3"]), ("2", "2")])
def test_of_a_list_of_answers_any_is_right(read: Read, given: Any, truth: Any) -> None:
    prompt = read("math", {"problem": "?", "answer": given})
    assert prompt.ground_truth == truth
    assert right_answer(prompt) == "\\boxed{2}"


def test_an_empty_list_of_answers_is_refused(read: Read) -> None:
    with pytest.raises(DataError, match="row 0: the list of answers is empty"):
        read("math", {"problem": "?", "answer": []})


def test_trls_rows_and_columns_of_any_name_are_read(read: Read) -> None:
    theirs = read("messages", {"prompt": "2+3?", "solution": "5", "level": 1}, verifiers=["f1"])
    assert (theirs.ground_truth, theirs.columns) == ("5", {"level": 1})
    row = {"q": "2+3?", "sol": "5", "prompt": "another", "kind": {"a": [1]}}
    mine = read("messages", row, verifiers=["f1"], columns={"prompt": "q", "ground_truth": "sol"})
    assert (mine.messages, mine.ground_truth) == ([{"role": "user", "content": "2+3?"}], "5")
    assert mine.columns == {"prompt": "another", "kind": {"a": [1]}}


def test_a_named_column_wins_over_the_layouts_other_names_for_it(read: Read) -> None:
    row = {"messages": "no", "question": "2+3?", "ground_truth": "5"}
    assert read("messages", row, verifiers=["f1"], columns={"prompt": "question"}).columns == {"messages": "no"}


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"prompt": "q"}, "no column q; it has prompt, solution"),
        ({"verifier": "who"}, r"no column who \(data\.columns\.verifier\); it has prompt, solution"),
        ({"promt": "prompt"}, r"data\.columns\.promt: the layout reads no such column; it reads messages, prompt"),
    ],
)
def test_a_column_that_is_not_there_is_named(read: Read, columns: dict[str, str], line: str) -> None:
    with pytest.raises(DataError, match=line):
        read("messages", {"prompt": "?", "solution": "5"}, verifiers=["f1"], columns=columns)


def test_columns_that_json_does_not_know_come_as_text_and_pictures_not_at_all(read: Read, tmp_path: Path) -> None:
    row = {"prompt": "?", "solution": "5", "made": datetime(2026, 1, 2), "picture": b"x"}
    features = Features(
        {"prompt": Value("string"), "solution": Value("string"), "made": Value("timestamp[s]"), "picture": Image()}
    )
    Dataset.from_list([row], features=features).save_to_disk(str(tmp_path / "saved"))
    prompt = read("messages", path=str(tmp_path / "saved"), verifiers=["f1"])
    assert prompt.columns == {"made": "2026-01-02 00:00:00"}
