import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.rewards.quick_equality import quickly_equal

EQUAL = [
    ("x^2+2x+1", "(x+1)^2"),
    ("\\frac{x^2-1}{x-1}", "x+1"),
    ("x^{-1}", "\\frac{1}{x}"),
    ("2\\sqrt{2}", "8^{1/2}"),
    ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
    ("\\frac{\\pi}{2}", "0.5\\pi"),
    ("0", "x-x"),
    ("(1, \\frac{4}{2})", "\\left(1,2\\right)"),
    ("\\{1,2,3\\}", "3,2,1"),
]
DIFFERENT = [
    ("x^2+2x+1", "(x-1)^2"),
    ("10^{40}+1", "10^{40}"),
    ("\\sqrt{2}", "1.41421356237309504880168872420969807"),
    ("\\pi", "3.14159265358979323846264338327950288"),
    ("-x^2", "(-x)^2"),
    ("x", "y"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "[0,1]"),
    ("1,2", "1,3"),
]
LEFT_TO_SYMPY = [
    ("\\sqrt{x^2}", "x"),  # not for a negative x
    ("9^{9^{9}}", "3"),
    ("1/2x", "\\frac{x}{2}"),
    ("x^23", "x^{23}"),
    ("3+4i", "4i+3"),
    ("\\sin x", "x"),
    ("\\frac{1}{0}", "5"),
    ("x=1", "1"),
    ("5!", "120"),
    ("(" * 5000, "x"),
    ("2^{100000}", "2^{100000}"),
    ("\\{1,2\\}", "(1,2)"),
    ("2,2", "2,2"),
]


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (*pair, verdict)
        for pairs, verdict in ((EQUAL, True), (DIFFERENT, False), (LEFT_TO_SYMPY, None))
        for pair in pairs
    ],
)
def test_a_verdict_is_right_or_left_to_sympy(one: str, other: str, verdict: bool | None) -> None:
    assert quickly_equal(one, other) is verdict
    if verdict is not None:
        assert quickly_equal(other, one) is verdict


polynomials = st.lists(st.integers(-5, 5), min_size=1, max_size=4)


def written(coefficients: list[int]) -> str:
    return "+".join(f"({value})x^{power}" for power, value in enumerate(coefficients))


@settings(max_examples=60, deadline=None)
@given(polynomials, polynomials)
def test_polynomials_are_equal_exactly_where_their_coefficients_are(one: list[int], other: list[int]) -> None:
    length = max(len(one), len(other))
    same = one + [0] * (length - len(one)) == other + [0] * (length - len(other))
    assert quickly_equal(written(one), written(other)) is same


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 99), st.integers(2, 99))
def test_sympy_agrees_about_roots(a: int, b: int) -> None:
    from shoal.rewards.symbolic import same_expression  # noqa: PLC0415 - math-verify is an optional package

    for one, other in (
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * b}}}"),
        (f"\\sqrt{{{a}}}+\\sqrt{{{b}}}", f"\\sqrt{{{a + b}}}"),
    ):
        assert quickly_equal(one, other) is same_expression(one, other)
