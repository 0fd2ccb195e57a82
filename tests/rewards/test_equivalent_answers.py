"""Generated ground truths: every listed writing of one is right, and every listed near miss is wrong."""

from collections.abc import Callable
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.rewards.base import Submission
from shoal.rewards.verifiers.gsm8k import gsm8k
from shoal.rewards.verifiers.math import math

numbers = st.builds(
    lambda sign, whole, cents: Fraction(sign * (whole * 100 + cents), 100),
    st.sampled_from((1, -1)),
    st.integers(1, 9_999_999),
    st.sampled_from((0, 25, 50, 75)),
)


def decimal(value: Fraction, digits: int = 2) -> str:
    """Exactly, with at least so many digits that nothing is lost: values are multiples of 1/100."""
    sign, cents = "-" if value < 0 else "", int(abs(value) * 100)
    return f"{sign}{cents // 100}.{cents % 100:02}{'0' * (digits - 2)}"


def shortest(value: Fraction) -> str:
    return decimal(value).rstrip("0").rstrip(".")


def grouped(value: Fraction, comma: str = ",") -> str:
    sign, cents = "-" if value < 0 else "", int(abs(value) * 100)
    rest = f".{cents % 100:02}" if cents % 100 else ""
    return f"{sign}{cents // 100:,}{rest}".replace(",", comma)


def signed(value: Fraction, prefix: str) -> str:
    """The prefix after the sign: -$5."""
    text = grouped(value)
    return f"-{prefix}{text[1:]}" if value < 0 else f"{prefix}{text}"


WRITINGS: dict[str, Callable[[Fraction], str]] = {
    "as it is": shortest,
    "trailing zeros": lambda value: decimal(value, 4),
    "two decimals": decimal,
    "plus sign": lambda value: "+" + shortest(value) if value > 0 else shortest(value),
    "minus sign of typesetting": lambda value: shortest(value).replace("-", "−"),
    "thousands": grouped,
    "LaTeX thousands": lambda value: grouped(value, "{,}"),
    "LaTeX thin space": lambda value: grouped(value, "\\,"),
    "currency": lambda value: signed(value, "$"),
    "LaTeX currency": lambda value: signed(value, "\\$"),
    "percent": lambda value: shortest(value) + "%",
    "LaTeX percent": lambda value: shortest(value) + "\\%",
    "unit": lambda value: shortest(value) + " apples",
    "LaTeX unit": lambda value: shortest(value) + "\\text{ cm}",
    "fraction": lambda value: f"{value.numerator}/{value.denominator}",
    "larger fraction": lambda value: f"{3 * value.numerator}/{3 * value.denominator}",
    "LaTeX fraction": lambda value: "-" * (value < 0) + f"\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}",
    "dollars around": lambda value: f"${shortest(value)}$",
    "variable": lambda value: f"x = {shortest(value)}",
}
NEAR_MISSES: dict[str, Callable[[Fraction], str]] = {
    "other sign": lambda value: shortest(-value),
    "one more": lambda value: shortest(value + 1),
    "a hundredth more": lambda value: shortest(value + Fraction(1, 100)),
    "ten times": lambda value: shortest(value * 10),
    "a tenth, cut off": lambda value: shortest(Fraction(int(value * 10), 100)),
    "twice": lambda value: f"{2 * value.numerator}/{value.denominator}",
    "another digit in front": lambda value: shortest(value).replace("-", "-1") if value < 0 else "1" + shortest(value),
    "nothing": lambda value: "",
    "a word": lambda value: "none",
}
PLACES = ("\\boxed{{{}}}", "<answer>{}</answer>", "So we have it.\n#### {}")


@settings(max_examples=60, deadline=None)
@given(numbers)
def test_every_writing_of_a_number_is_right_and_every_near_miss_wrong(value: Fraction) -> None:
    for verifier in (gsm8k, math):
        for place in PLACES:
            for kind, write in WRITINGS.items():
                text = place.format(write(value))
                assert verifier(Submission(text, shortest(value))) == 1.0, (verifier.__name__, kind, text)
            for kind, write in NEAR_MISSES.items():
                text = place.format(write(value))
                assert verifier(Submission(text, shortest(value))) == 0.0, (verifier.__name__, kind, text)


@settings(max_examples=40, deadline=None)
@given(numbers)
def test_a_number_may_be_the_truth_in_any_of_its_writings(value: Fraction) -> None:
    for truth in (decimal(value), grouped(value), signed(value, "$"), f"{value.numerator}/{value.denominator}"):
        for verifier in (gsm8k, math):
            assert verifier(Submission(f"\\boxed{{{shortest(value)}}}", truth)) == 1.0, (verifier.__name__, truth)
            assert verifier(Submission(f"\\boxed{{{shortest(value + 1)}}}", truth)) == 0.0, (verifier.__name__, truth)


small = st.integers(2, 9)
different = st.tuples(small, small, small).filter(lambda abc: len(set(abc)) == 3)


@settings(max_examples=5, deadline=None)
@given(different)
def test_every_writing_of_a_quadratic_is_right_and_every_near_miss_wrong(abc: tuple[int, int, int]) -> None:
    a, b, c = abc
    truth = f"{a * c}x^2+{a + b * c}x+{b}"  # (a x + b)(c x + 1)
    equal = {
        "reordered": f"{b}+{a + b * c}x+{a * c}x^2",
        "factored": f"({a}x+{b})({c}x+1)",
        "factors swapped": f"({c}x+1)({a}x+{b})",
        "products written": f"{a * c}\\cdot x^{{2}} + {a + b * c}\\cdot x + {b}",
        "Horner": f"x({a * c}x+{a + b * c})+{b}",
        "split term": f"{a * c}x^2+{a}x+{b * c}x+{b}",
        "spaces": f"{a * c} x^2 + {a + b * c} x + {b}",
        "common factor": f"{a}x({c}x+1)+{b}({c}x+1)",
        "fraction": f"\\frac{{2({a}x+{b})({c}x+1)}}{{2}}",
        "negated twice": f"-(-{a * c}x^2-{a + b * c}x-{b})",
        "brackets": f"\\left({a}x+{b}\\right)\\left({c}x+1\\right)",
        "as a function": f"f(x) = {a * c}x^2+{a + b * c}x+{b}",
        "with a product sign": f"({a}x+{b})\\times({c}x+1)",
    }
    wrong = {
        "sign": f"{a * c}x^2-{a + b * c}x+{b}",
        "constant": f"{a * c}x^2+{a + b * c}x+{b + 1}",
        "power": f"{a * c}x^3+{a + b * c}x+{b}",
        "term left out": f"{a * c}x^2+{b}",
        "other variable": f"{a * c}y^2+{a + b * c}y+{b}",
        "other factor": f"({a}x+{b})({c}x+2)",
        "its root's place": f"-\\frac{{{b}}}{{{a}}}",
        "doubled": f"{2 * a * c}x^2+{2 * (a + b * c)}x+{2 * b}",
    }
    check(truth, equal, wrong)


@settings(max_examples=8, deadline=None)
@given(st.tuples(small, st.sampled_from((2, 3, 5, 7))))
def test_every_writing_of_a_root_is_right_and_every_near_miss_wrong(case: tuple[int, int]) -> None:
    factor, radicand = case
    inner = factor * factor * radicand
    truth = f"{factor}\\sqrt{{{radicand}}}"
    equal = {
        "under the root": f"\\sqrt{{{inner}}}",
        "without braces": f"{factor}\\sqrt{radicand}",
        "swapped": f"\\sqrt{{{radicand}}}\\cdot{factor}",
        "times": f"{factor}\\times\\sqrt{{{radicand}}}",
        "power": f"{inner}^{{1/2}}",
        "power as a fraction": f"{inner}^{{\\frac{{1}}{{2}}}}",
        "over its root": f"\\frac{{{factor * radicand}}}{{\\sqrt{{{radicand}}}}}",
        "over an integer": f"\\frac{{{2 * factor}\\sqrt{{{radicand}}}}}{{2}}",
        "product of roots": f"\\sqrt{{{factor * factor}}}\\sqrt{{{radicand}}}",
        "sum": f"\\sqrt{{{radicand}}}+{factor - 1}\\sqrt{{{radicand}}}",
        "spaces": f"{factor} \\, \\sqrt{{ {radicand} }}",
        "unit": f"{factor}\\sqrt{{{radicand}}}\\text{{ cm}}",
    }
    wrong = {
        "square": f"{inner}",
        "without the factor": f"\\sqrt{{{radicand}}}",
        "without the root": f"{factor * radicand}",
        "sign": f"-{factor}\\sqrt{{{radicand}}}",
        "factor inside": f"\\sqrt{{{factor * radicand}}}",
        "rounded": f"{factor * radicand**0.5:.3f}",
        "plus": f"{factor}+\\sqrt{{{radicand}}}",
        "cube root": f"{factor}\\sqrt[3]{{{radicand}}}",
    }
    check(truth, equal, wrong)


@settings(max_examples=8, deadline=None)
@given(different)
def test_every_writing_of_a_set_is_right_and_every_near_miss_wrong(abc: tuple[int, int, int]) -> None:
    a, b, c = abc
    truth = f"\\{{{a},{b},{c}\\}}"
    equal = {
        "spaces": f"\\{{ {a}, {b}, {c} \\}}",
        "reordered": f"\\{{{c},{a},{b}\\}}",
        "a list": f"{a}, {b}, {c}",
        "a reordered list": f"{b},{c},{a}",
        "and": f"{a}, {b} and {c}",
        "LaTeX and": f"{a}, {b}, \\text{{ and }} {c}",
        "or": f"{a}, {b} or {c}",
        "decimals": f"\\{{{a}.0,{b},{c}\\}}",
        "fractions": f"\\{{\\frac{{{2 * a}}}{{2}},{b},{c}\\}}",
        "brackets": f"\\left\\{{{a},{b},{c}\\right\\}}",
        "powers": f"\\{{{a}^1,{b},{c}\\}}",
    }
    wrong = {
        "one left out": f"\\{{{a},{b}\\}}",
        "one too many": f"\\{{{a},{b},{c},10\\}}",
        "one other": f"\\{{{a},{b},11\\}}",
        "sum": str(a + b + c),
        "first": str(a),
        "digits": f"{a}{b}{c}",
        "empty": "\\emptyset",
        "sign": f"\\{{-{a},{b},{c}\\}}",
    }
    check(truth, equal, wrong)


def check(truth: str, equal: dict[str, str], wrong: dict[str, str]) -> None:
    for kind, text in equal.items():
        assert math(Submission(f"Thus \\boxed{{{text}}}.", truth)) == 1.0, (kind, truth, text)
    for kind, text in wrong.items():
        assert math(Submission(f"Thus \\boxed{{{text}}}.", truth)) == 0.0, (kind, truth, text)
