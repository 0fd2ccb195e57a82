import pytest

from shoal.rewards.base import Submission
from shoal.rewards.verifiers.strings import exact_answer


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>16-3=13</think><answer>13</answer>", 1),
        ("<answer> 13 </answer>", 1),
        ("<answer>12</answer><answer>13</answer>", 1),
        ("<answer>13</answer><answer>12</answer>", 0),
        ("<answer>12<answer>13</answer>", 1),
        ("<answer>13</answer></answer>", 1),
        ("</answer>13<answer>", 0),
        ("<answer>13.0</answer>", 0),
        ("<answer>013</answer>", 0),
        ("13", 0),
        ("<answer>13", 0),
        ("<answer></answer>", 0),
        ("", 0),
    ],
)
def test_only_the_last_closed_answer_counts_and_letter_for_letter(text: str, right: int) -> None:
    assert exact_answer(Submission(text, "13")) == right


def test_no_answer_is_wrong_also_where_the_truth_reads_none() -> None:
    assert exact_answer(Submission("nothing", "None")) == 0.0
