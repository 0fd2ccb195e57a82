import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.rewards.base import Submission
from shoal.rewards.verifiers.gsm8k import gsm8k, gsm8k_open_instruct

# Answer, ground truth, right or wrong. Every row was decided by hand.
TABLE = [
    # where the answer stands
    ("<answer>18</answer>", "18", 1),
    ("<answer> 18 </answer>", "18", 1),
    ("<answer>\n18\n</answer>", "18", 1),
    ("<answer>17</answer> The answer is 18.", "18", 0),
    ("<answer>17</answer> no, <answer>18</answer>", "18", 1),
    ("<answer>18</answer> no, <answer>17</answer>", "18", 0),
    ("<think>9*2=18</think><answer>9</answer>", "18", 0),
    ("<answer>eighteen</answer> 18", "18", 0),
    ("<answer></answer> 18", "18", 0),
    (r"so \boxed{18}", "18", 1),
    (r"\boxed{17} and then \boxed{18}", "18", 1),
    (r"\boxed{18} and then \boxed{17}", "18", 0),
    (r"\boxed{18} of the \boxed{", "18", 1),
    (r"\boxed{\text{Dee has } 18 \text{ cats}}", "18", 1),
    (r"\boxed{x = 18}", "18", 1),
    (r"\boxed{\boxed{18}}", "18", 1),
    (r"\boxed{18} #### 17", "18", 1),
    ("9 * 2 = 18\n#### 18", "18", 1),
    ("#### 18\nThat took 3 steps", "18", 1),
    ("#### 17\n#### 18", "18", 1),
    ("#### 18", "17", 0),
    ("####18", "18", 1),
    ("The answer is 18.", "18", 1),
    ("The answer is: 18", "18", 1),
    ("The final answer is $18.00.", "18", 1),
    ("THE ANSWER IS 18 because 9 * 2 = 18 and 7 is odd", "18", 1),
    ("The answer is 17. No: the answer is 18. I checked 2 times.", "18", 1),
    ("The answer is 18, not 17", "17", 0),
    ("The answer is 72 (48 + 24).", "72", 1),
    ("First 48, then 24; the answer is what I said: none", "24", 1),
    ("48 + 24 = 72", "72", 1),
    ("72 (see step 3)", "72", 1),
    ("72 (see step 3 (or 4))", "72", 1),
    ("72 (see step 3", "72", 1),
    ("(72)", "72", 1),
    ("She sold 48 and then 24 clips.", "24", 1),
    ("no number at all", "18", 0),
    ("", "18", 0),
    # signs
    ("+7", "7", 1),
    ("-7", "-7", 1),
    ("-7", "7", 0),
    ("7", "-7", 0),
    ("−7", "-7", 1),
    ("5-2", "2", 1),
    ("5 - 2", "2", 1),
    ("5-2", "-2", 0),
    ("(5)-2", "2", 1),
    ("x=-2", "-2", 1),
    ("step-2", "2", 1),
    ("- 18 apples", "18", 1),
    ("-$5", "-5", 1),
    ("$-5", "-5", 1),
    ("The answer is -5", "-5", 1),
    ("-0", "0", 1),
    # currency, thousands, trailing zeros, percent, units
    ("$18.00", "18", 1),
    ("$ 18", "18", 1),
    ("€18", "18", 1),
    ("18€", "18", 1),
    (r"\boxed{\$18}", "18", 1),
    ("Rs.18", "18", 1),
    ("18 dollars", "18", 1),
    ("1,000", "1000", 1),
    ("1000", "1,000", 1),
    ("$1,234,567.50", "1234567.5", 1),
    (r"\boxed{1{,}000}", "1000", 1),
    (r"\boxed{1\,000}", "1000", 1),
    ("1\u202f000", "1000", 1),
    ("12, 15, 18", "18", 1),
    ("1,23", "123", 0),
    ("3.50", "3.5", 1),
    ("3.5", "3.50", 1),
    ("3.0", "3", 1),
    ("3.05", "3.5", 0),
    (".5", "0.5", 1),
    ("0018", "18", 1),
    ("18.", "18", 1),
    ("50%", "50", 1),
    ("50 %", "50", 1),
    ("50%", "0.5", 1),
    ("0.5", "50%", 1),
    ("0.5%", "50%", 0),
    ("0.5", "50", 0),
    (r"\boxed{50\%}", "50", 1),
    ("18 km/h", "18", 1),
    ("12 cm^2", "12", 1),
    (r"\boxed{12\text{ cm}^{2}}", "12", 1),
    ("12 m2", "12", 1),
    ("18kg", "18", 1),
    # fractions
    ("1/2", "0.5", 1),
    ("1 1/2", "1.5", 1),
    (r"\boxed{\frac{3}{4}}", "0.75", 1),
    (r"\boxed{2\frac{3}{4}}", "2.75", 1),
    (r"\boxed{-\dfrac{3}{4}}", "-0.75", 1),
    ("1/0", "1", 0),
    ("1/3", "0.33", 0),
    # size, and what is no number
    ("9" * 5000, "9", 0),
    ("1/" + "9" * 5000, "9", 0),
    ("0.1", "0.10000000000000001", 0),
    ("nan", "18", 0),
    ("inf", "18", 0),
    # a ground truth that is no number is compared as text
    ("<answer>Blue  whale</answer>", "blue whale", 1),
    ("<answer>whale</answer>", "blue whale", 0),
]


@pytest.mark.parametrize(("text", "truth", "right"), TABLE)
def test_the_verdict_of_a_written_answer(text: str, truth: str, right: int) -> None:
    assert gsm8k(Submission(text, truth)) == right


def test_a_ground_truth_may_be_a_number() -> None:
    assert gsm8k(Submission("#### 18", 18)) == 1.0
    assert gsm8k(Submission("#### 3.50", 3.5)) == 1.0


# What open-instruct's verifier gives (shared behaviour: last match of [-+]?(\d*\.\d+|\d+), compared as strings).
@pytest.mark.parametrize(
    ("text", "truth", "right"),
    [
        ("18", "18", 1),
        ("it is 1,000", "1000", 1),
        ("#### 18", "18", 1),
        ("$18.00", "18", 0),
        ("5-2", "2", 0),
        ("5-2", "-2", 1),
        ("+7", "7", 0),
        ("3.50", "3.5", 0),
        ("72 (see step 3)", "72", 0),
        ("72 (see step 3)", "3", 1),
        ("<answer>18</answer> in 2 steps", "18", 0),
        ("Blue", "blue", 1),
        ("", "18", 0),
    ],
)
def test_the_compatible_verifier_keeps_the_known_quirks(text: str, truth: str, right: int) -> None:
    assert gsm8k_open_instruct(Submission(text, truth)) == right
    assert gsm8k(Submission(text, truth), compat=True) == right


PLACES = [
    "{}",
    "<answer>{}</answer>",
    "\\boxed{{{}}}",
    "3 + 4\n#### {}",
    "The answer is {}, in 3 steps.",
    "It is {} (after 3 steps)",
    "7 and 12 make {} clips",
]


def writings(value: Decimal) -> list[str]:
    """Ways to write a number."""
    plain = f"{value:f}"
    size = plain.removeprefix("-")
    minus = "-" if value < 0 else ""
    grouped = f"{value:,f}"
    zeros = f"{plain}00" if "." in plain else f"{plain}.00"
    ways = [plain, grouped, zeros, f"{minus}${size}", f"{grouped} dollars", f"{plain} kg", f"{plain}%"]
    return ways if value < 0 else [*ways, f"+{plain}", f"0{plain}", f"${grouped}"]


numbers = st.decimals(min_value=-(10**9), max_value=10**9, places=2) | st.integers(-(10**12), 10**12).map(Decimal)


@given(value=numbers, place=st.sampled_from(PLACES), data=st.data())
def test_a_number_is_right_however_it_is_written_and_wherever_it_stands(
    value: Decimal, place: str, data: st.DataObject
) -> None:
    written = data.draw(st.sampled_from(writings(value)))
    truth = data.draw(st.sampled_from(writings(value)))
    assert gsm8k(Submission(place.format(written), truth)) == 1.0


@given(value=numbers, other=numbers, place=st.sampled_from(PLACES), data=st.data())
def test_another_number_is_wrong_however_it_is_written(
    value: Decimal, other: Decimal, place: str, data: st.DataObject
) -> None:
    if value in (other, other * 100) or other == value * 100:
        return  # a percentage may be meant
    written = data.draw(st.sampled_from(writings(value)))
    truth = data.draw(st.sampled_from(writings(other)))
    assert gsm8k(Submission(place.format(written), truth)) == 0.0


@given(text=st.text(alphabet="0123456789+-−.,/%$ ()<>answer{}\\boxedfrac#\n^is\u0661²", max_size=200))
def test_any_text_gets_a_verdict(text: str) -> None:
    for function in (gsm8k, gsm8k_open_instruct):
        assert function(Submission(text, "18")) in (0.0, 1.0)


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "(", "{", "1 ", "1,", "9", "-", "answer ", "answer is ", "<answer>", "^{", "#### ", "\\frac{1"],
)
def test_a_degenerate_text_is_judged_in_linear_time(piece: str) -> None:
    start = time.thread_time()  # of the processor: it has others to serve
    gsm8k(Submission(piece * (100_000 // len(piece)), "18"))
    # The verifier runs without a deadline, so it must not need one: quadratic time would take minutes here.
    assert time.thread_time() - start < 5
