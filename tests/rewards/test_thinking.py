"""Every verifier that looks for an answer looks for it after the thinking; the rule stands in one place."""

import pytest

from shoal.rewards.answers.thinking import THINKING_ENDS, after_thinking, answering_part
from shoal.rewards.base import Submission
from shoal.rewards.lookup import find_verifier
from shoal.rewards.verifiers.citations import find_claims
from shoal.rewards.verifiers.code import find_program

RULE = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
RIGHT = {  # a right answer, a wrong one, and the ground truth
    "gsm8k": [
        ("\\boxed{18}", "\\boxed{20}", "18"),
        ("<answer>18</answer>", "<answer>20</answer>", "18"),
        ("#### 18", "#### 20", "18"),
        ("The answer is 18.", "The answer is 20.", "18"),
        ("18", "20", "18"),
    ],
    "math": [
        ("\\boxed{18}", "\\boxed{20}", "18"),
        ("<answer>x+1</answer>", "<answer>x</answer>", "1+x"),
        ("#### 18", "#### 20", "18"),
        ("$18$", "$20$", "18"),
    ],
    "strict_math": [("18", "20", "18")],
    "exact_answer": [("<answer>a</answer>", "<answer>b</answer>", "a")],
    "string_match": [("<answer>a cat</answer>", "<answer>dog</answer>", "cat"), ("cat", "dog", "cat")],
    "f1": [("<answer>cat</answer>", "<answer>dog</answer>", "cat"), ("cat", "dog", "cat")],
    "regex": [("ab", "cd", "ab")],
    "json_schema": [("```\n1\n```", '```\n"a"\n```', {"type": "integer"}), ("1", "true", {"type": "integer"})],
    "ifeval": [('"a"', "a", RULE)],
    "ifeval_loose": [('"a"', "a", RULE)],
}
ROWS = [(name, *row) for name, rows in RIGHT.items() for row in rows]


@pytest.mark.parametrize("end", THINKING_ENDS)
@pytest.mark.parametrize(("name", "right", "wrong", "truth"), ROWS)
def test_the_answer_after_the_thinking_counts_and_the_one_in_it_does_not(name, right, wrong, truth, end):
    judge = find_verifier(name).function
    for first, last, score in ((wrong, right, 1), (right, wrong, 0)):
        for start in ("<think>\n", ""):
            assert judge(Submission(f"{start}{first}\n{end}\n\n{last}", truth)) == score, (first, last)


def test_a_mark_in_the_thinking_does_not_hide_a_plain_answer_after_it():
    for thinking in ("\\boxed{}", "in <answer>number</answer>", "#### 3", "the answer is 3"):
        assert find_verifier("gsm8k").function(Submission(f"<think>{thinking}</think> It is 11.", "11")) == 1
        assert find_verifier("gsm8k").function(Submission(f"<think>{thinking}</think> It is 12.", "11")) == 0


def test_programs_and_claims_are_looked_for_after_the_thinking():
    assert find_program("<think>```python\na\n```</think>\n```\nb\n```") == "b\n"
    assert find_claims('<think><answer><cite id="1">a</cite></answer></think><cite id="2">b</cite>')[0].text == "b"


@pytest.mark.parametrize(
    ("text", "after", "answering"),
    [
        ("a", "a", "a"),
        ("<think>a</think> b ", "b", "b"),
        ("a</think>b</think>c", "c", "c"),
        ("<think>a</think> ", "", "<think>a"),
        ("a</think>b</think>", "", "b"),
        ("</think>", "", ""),
        ("", "", ""),
    ],
)
def test_where_nothing_follows_the_thinking_its_own_end_is_read(text: str, after: str, answering: str):
    assert (after_thinking(text), answering_part(text)) == (after, answering)


def test_a_text_of_nothing_but_ends_is_read_in_linear_time():
    assert answering_part("</think>" * 20_000) == ""
