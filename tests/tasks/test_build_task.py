import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from shoal.config import ShoalConfig
from shoal.config.nodes.data import DataConfig
from shoal.errors import DataError
from shoal.rewards.base import REGISTRY, Submission
from shoal.rewards.lookup import find_verifier
from shoal.tasks.dataset import LAYOUTS, build_task
from shoal.tasks.story import story_tokenizer

ROWS = [
    {"question": "How many legs have 2 cats?", "answer": "2*4=<<2*4=8>>8\n#### 8"},
    {"question": "How many have 3?", "answer": "3*4=12\n#### 12"},
    {"question": "What do 5 books at $260 cost?", "answer": "5*260=1300\n#### 1,300"},
]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def gsm8k_config(path: str, **data: object) -> ShoalConfig:
    cfg = ShoalConfig()
    cfg.data.task = "gsm8k"
    cfg.data.path = path
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def test_the_story_task_is_ready_to_train_on() -> None:
    tokenizer = story_tokenizer()
    task = build_task(ShoalConfig(), tokenizer)
    prompt = task.train[0]
    assert tokenizer.decode(prompt.token_ids) == prompt.messages[0]["content"]
    assert (prompt.source, prompt.verifiers, task.dropped) == ("story", [], {})
    assert task.verifiers == {"exact_answer": 1.0}
    assert len(task.train) == 10_000
    assert len(task.evaluation) == 1_000
    assert not {prompt.id for prompt in task.train} & {prompt.id for prompt in task.evaluation}


def test_the_story_task_can_be_asked_of_any_model(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = build_task(ShoalConfig(), chat_tokenizer).train[0]
    assert chat_tokenizer.decode(prompt.token_ids) == f"[user]{prompt.messages[0]['content']}[assistant]"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "saved splits"])
def test_rows_come_from_every_kind_of_local_data(
    kind: str, tmp_path: Path, rows_file: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = str(tmp_path / "data.parquet") if kind == "parquet" else str(tmp_path / "data")
    if kind == "jsonl":
        path = rows_file
    elif kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "saved":
        Dataset.from_list(ROWS).save_to_disk(path)
    else:
        DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(path)
    task = build_task(gsm8k_config(path), tokenizer)
    assert [prompt.ground_truth for prompt in task.train] == ["8", "12", "1,300"]
    assert [prompt.id for prompt in task.train] == ["gsm8k/train/0", "gsm8k/train/1", "gsm8k/train/2"]
    assert len(task.evaluation) == (1 if kind == "saved splits" else 3)
    assert task.evaluation[0].id == "gsm8k/test/0"


def test_evaluation_may_have_a_file_and_a_split_of_its_own(
    tmp_path: Path, rows_file: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = str(tmp_path / "held_out")
    DatasetDict({"part": Dataset.from_list(ROWS[2:])}).save_to_disk(path)
    task = build_task(gsm8k_config(rows_file, eval_path=path, eval_split="part"), tokenizer)
    assert [prompt.ground_truth for prompt in task.evaluation] == ["1,300"]
    assert len(task.train) == 3


def test_a_file_that_serves_both_sides_is_said(
    rows_file: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build_task(gsm8k_config(rows_file), tokenizer)
    assert "set data.eval_path" in caplog.text


def test_questions_are_rendered_as_they_are_without_a_chat_template(
    rows_file: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = build_task(gsm8k_config(rows_file), tokenizer).train[0]
    assert tokenizer.decode(plain.token_ids) == "How many legs have 2 cats?"
    told = build_task(gsm8k_config(rows_file, system_prompt="Think."), tokenizer).train[0]
    assert tokenizer.decode(told.token_ids) == "Think.\n\nHow many legs have 2 cats?"
    assert [message["role"] for message in told.messages] == ["system", "user"]


def test_the_chat_template_gets_its_arguments_and_the_system_prompt(
    rows_file: str, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    cfg = gsm8k_config(rows_file, system_prompt="Think.")
    cfg.model.chat_template_kwargs = {"shout": True}
    prompt = build_task(cfg, chat_tokenizer).train[0]
    assert chat_tokenizer.decode(prompt.token_ids) == "[system]Think.[user]How many legs have 2 cats?[assistant]!"


def test_a_template_that_refuses_the_messages_is_one_line(rows_file: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"no system role.*data\.system_prompt"):
        build_task(gsm8k_config(rows_file), tokenizer)


def test_long_prompts_are_left_out_counted_and_said(
    rows_file: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    # The questions have 26, 16 and 29 characters, and a character is a token.
    with caplog.at_level(logging.WARNING):
        task = build_task(gsm8k_config(rows_file, max_prompt_tokens=26), tokenizer)
    assert [prompt.id for prompt in task.train] == ["gsm8k/train/0", "gsm8k/train/1"]
    assert task.dropped == {"gsm8k, training: longer than 26 tokens": 1, "gsm8k, evaluation: longer than 26 tokens": 1}
    assert "1 of 3 training prompts are longer than data.max_prompt_tokens=26" in caplog.text


def test_a_limit_that_leaves_nothing_is_refused(rows_file: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"all 3 training prompts are longer than .*=10 \(the shortest has 16 tokens"):
        build_task(gsm8k_config(rows_file, max_prompt_tokens=10), tokenizer)


def test_unusable_data_is_one_clear_line(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{ this is no JSON\n")
    text = tmp_path / "rows.txt"
    text.write_text("question, answer")
    no_rows = str(tmp_path / "no_rows")
    Dataset.from_dict({"question": [], "answer": []}).save_to_disk(no_rows)
    splits = str(tmp_path / "splits")
    DatasetDict({"left": Dataset.from_list(ROWS), "right": Dataset.from_list(ROWS)}).save_to_disk(splits)
    cases = {
        str(tmp_path / "none.jsonl"): "no such file",
        str(empty): "the file is empty",
        str(broken): "cannot be read",
        str(text): "must end in .jsonl",
        str(tmp_path / "nothing_here"): "data.path",
        no_rows: "no rows",
        splits: "no split train; it has left, right",
        write_jsonl(
            tmp_path / "column.jsonl", [{"question": "?", "solution": "1"}]
        ): "no column answer; it has question, solution",
        write_jsonl(tmp_path / "mark.jsonl", [{"question": "?", "answer": "18"}]): "row 0: the answer has no '####'",
        write_jsonl(tmp_path / "null.jsonl", [ROWS[0], {"question": "?"}]): "row 1: no value for answer",
    }
    for path, message in cases.items():
        with pytest.raises(DataError) as caught:
            build_task(gsm8k_config(path), tokenizer)
        line = str(caught.value)
        assert message in line
        assert path in line
        assert "\n" not in line


@pytest.mark.parametrize("name", ["story", "gsm8k"])
def test_what_a_layout_demonstrates_earns_the_full_reward(
    name: str, rows_file: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    cfg = gsm8k_config(rows_file, task=name)
    task = build_task(cfg, tokenizer)
    assert task.demonstrate is not None
    for prompt in task.train[:3]:
        for verifier in task.verifiers:
            assert verifier in REGISTRY
            right = Submission(task.demonstrate(prompt), prompt.ground_truth)
            assert find_verifier(verifier).function(right) == 1.0
            assert find_verifier(verifier).function(Submission("I do not know.", prompt.ground_truth)) == 0.0


def test_the_configuration_offers_the_layouts_that_there_are() -> None:
    (task,) = (field for field in fields(DataConfig) if field.name == "task")
    assert set(task.metadata["choices"]) == set(LAYOUTS)
