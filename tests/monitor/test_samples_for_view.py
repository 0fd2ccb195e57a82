"""What samples, evaluations and notes hold for `shoal view`."""

from __future__ import annotations

import json
import logging

import pytest
from monitor.made_groups import completion, group

from shoal.config import ShoalConfig
from shoal.monitor.monitor import Monitor
from shoal.monitor.samples import sample_rows
from shoal.monitor.tokens import token_columns, token_texts
from shoal.types import Completion, Group, Prompt, Segment, StopReason


def decode(ids: list[int]) -> str:
    """One byte a token, and a space at the beginning is dropped, as SentencePiece does."""
    return bytes(ids).decode("utf-8", "replace").removeprefix(" ")


@pytest.mark.parametrize("text", ["plain words", "naïve 日本 🐟!", " leading"])
def test_the_texts_of_tokens_add_up_to_the_text_with_letters_of_several_tokens_whole(text):
    ids = list(text.encode())
    texts = token_texts(ids, decode)
    assert len(texts) == len(ids) and "".join(texts) == decode(ids)
    assert not any("\ufffd" in one for one in texts)


def test_columns_have_an_entry_for_each_sampled_token_and_say_where_segments_begin():
    segments = [
        Segment([72], [97, 98], [-0.1, -0.2], [True, False]),
        Segment([72, 97], [99], [float("-inf")], [True], advantages=[2.0]),
    ]
    one = Completion(segments, StopReason.STOP, advantage=1.0)
    assert token_columns(one, [[-0.3, -0.4], [-0.5]], decode) == {
        "text": ["a", "b", "c"],
        "sampler": [-0.1, -0.2, None],
        "learner": [-0.3, -0.4, -0.5],
        "advantage": [1.0, 1.0, 2.0],
        "mask": [1, 0, 1],
        "segments": [[2, "Ha"]],
    }


def test_rows_say_why_they_were_left_out_what_was_added_and_what_was_asked():
    first, second = completion(1.0), completion(None)
    second.info = {"missing": {"answer": "no number"}, "odd": object(), "bad": float("nan")}
    prompt = Prompt("a", [1], messages=[{"role": "user", "content": "how many?"}])
    rows = list(sample_rows([Group("a", [first, second], prompt)], None, {1: "its reward is missing"}))
    assert rows[0]["messages"] == prompt.messages and "messages" not in rows[1]
    assert "left_out" not in rows[0] and rows[1]["left_out"] == "its reward is missing"
    assert rows[1]["info"]["missing"] == {"answer": "no number"} and rows[1]["info"]["bad"] is None
    json.dumps(rows, allow_nan=False)


def test_evaluations_leave_their_completions_and_a_resume_drops_later_ones(tmp_path):
    cfg = ShoalConfig()
    cfg.monitor.tensorboard = cfg.monitor.curve = False
    monitor = Monitor(cfg, tmp_path, total_steps=4)
    for step in (0, 2, 4):
        monitor.evaluation(step, {"accuracy": 1.0}, [group("a", [completion(1.0)])])
    monitor.close("stopped")
    files = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert files == ["step_0.jsonl", "step_2.jsonl", "step_4.jsonl"]
    assert json.loads((tmp_path / "evaluations" / "step_2.jsonl").read_text())["reward"] == 1.0
    again = Monitor(cfg, tmp_path, total_steps=4)
    again.load_state_dict({"step": 2, "rows": 2, "seconds": 0.0, "run_id": "x"})
    again.record(3, [group("a", [completion(1.0)])], {})
    again.close("stopped")
    assert sorted(path.name for path in (tmp_path / "evaluations").iterdir()) == files[:2]


def test_notes_keep_what_was_said_and_warned_with_the_step_it_happened_in(tmp_path):
    monitor = Monitor(ShoalConfig(), tmp_path, total_steps=4)
    monitor.message("begins")
    with monitor.phase("rollout"):
        logging.getLogger("shoal.rewards.scorer").warning("%d of 8 rewards missing", 3)
    monitor.failure("the weights have diverged")
    monitor.close("failed")
    logging.getLogger("shoal").warning("after the end")
    rows = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert [(one["step"], one["level"], one["text"]) for one in rows] == [
        (0, "note", "begins"),
        (1, "warning", "3 of 8 rewards missing"),
        (1, "error", "the weights have diverged"),
    ]


def test_turns_tell_the_models_words_from_those_of_tools():
    one = completion(1.0)
    one.segments = [Segment([72], list(b"call 5!done"), [0.0] * 11, [True] * 5 + [False] * 2 + [True] * 4)]
    one.text = ""
    plain_one = completion(0.0)
    rows = list(sample_rows([group("a", [one, plain_one])], decode))
    assert rows[0]["turns"] == [
        {"role": "assistant", "content": "call "},
        {"role": "environment", "content": "5!"},
        {"role": "assistant", "content": "done"},
    ]
    assert rows[0]["text"] == "call 5!done", "an environment may send tokens alone"
    assert "turns" not in rows[1]
