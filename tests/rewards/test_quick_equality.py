import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.rewards.answers.quick_equality import quickly_equal

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
    # Functions, roots of names, complex numbers.
    ("2\\sin x\\cos x", "\\sin 2x"),
    ("\\sin^2 x+\\cos^2 x", "1"),
    ("\\sin x", "\\cos(\\frac{\\pi}{2}-x)"),
    ("\\tan\\frac{\\pi}{4}", "1"),
    ("\\sec x", "\\frac{1}{\\cos x}"),
    ("\\arctan(1)", "\\frac{\\pi}{4}"),
    ("\\ln 8", "3\\ln 2"),
    ("\\log_2 8", "3"),
    ("\\log_{2} 5", "\\frac{\\ln 5}{\\ln 2}"),
    ("e^{2}", "e\\cdot e"),
    ("2^x", "e^{x\\ln 2}"),
    ("\\sqrt{4x}", "2\\sqrt{x}"),
    ("x^{1/3}", "\\sqrt[3]{x}"),
    ("\\sqrt[3]{54}", "3\\sqrt[3]{2}"),
    ("3+4i", "4i+3"),
    ("(1+i)^2", "2i"),
    # Infinite intervals, unions, matrices, equations.
    ("(-\\infty, 3]", "(-\\infty,\\frac{6}{2}]"),
    ("(-\\infty,3)\\cup(5,\\infty)", "(5,+\\infty)\\cup(-\\infty,3)"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix} 1 \\\\ \\frac{4}{2} \\\\ \\end{bmatrix}"),
    ("y=2x+3", "3+2x=y"),
    ("x>5", "(5,\\infty)"),
    ("x>5", "5<x"),
    ("-1\\leq x<\\sqrt{2}", "\\left[-1,\\sqrt{2}\\right)"),
    ("2\\ge x\\ge 1", "x\\in[1,2]"),
    ("(1,5)\\cup(2,7)", "(1,3)\\cup(2,7)"),
    ("[1,2)\\cup[2,3]", "[1,3]"),
    ("(1,2)\\cup[1,2]", "1\\leq x\\leq 2"),
    ("(1,3)\\cup[1,2]\\cup(2,3]", "[1,3]"),
    # Factorials and binomial coefficients, roots without braces, both signs, lines.
    ("5!", "120"),
    ("\\frac{1}{6!}", "\\frac{1}{720}"),
    ("2n!", "n! \\cdot 2"),
    ("n!", "n\\cdot(n-1)!"),
    ("\\frac{(n+1)!}{n!}", "n+1"),
    ("2^{3!}", "64"),
    ("20!", "2432902008176640000"),
    ("\\binom{6}{2}\\binom{4}{2}", "90"),
    ("\\binom{n}{2}", "\\frac{n(n-1)}{2}"),
    ("\\binom{n}{k}", "\\frac{n!}{k!(n-k)!}"),
    ("11\\sqrt2", "\\sqrt{242}"),
    ("3\\pm2\\sqrt{2}", "3-2\\sqrt{2}, 3+\\sqrt{8}"),
    ("\\pm 3", "3,-3"),
    ("y=2x+3", "2y=4x+6"),
    ("y=2x+3", "4x-2y+6=0"),
    ("(x-7)^2+y^2=12", "2(x-7)^2+2y^2=24"),
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
    ("\\sin x", "x"),
    ("\\sin x", "\\cos x"),
    ("\\sqrt{2x+3}", "\\sqrt{3-2x}"),
    ("3+4i", "3-4i"),
    ("e^{3}", "e^{2}"),
    ("x>5", "x\\geq 5"),
    ("x>5", "x<5"),
    ("x>5", "(-\\infty,5)"),
    ("[1,2)\\cup(2,3]", "[1,3]"),
    ("(-\\infty,1)\\cup(2,\\infty)", "(1,2)"),
    ("(-\\infty,1]\\cup(2,\\infty)", "(-\\infty,1)\\cup(2,\\infty)"),
    ("\\log_2 8", "\\log_8 2"),
    ("(-\\infty, 3)", "(-\\infty, 4)"),
    ("(-\\infty, 3)", "(2, 3)"),
    ("(3,\\infty)", "(3,-\\infty)"),
    ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\begin{pmatrix}1&3\\end{pmatrix}"),
    ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("5!", "121"),
    ("2n!", "(2n)!"),
    ("n!", "n^2"),
    ("20!", "2432902008176640001"),
    ("\\binom{5}{2}", "20"),
    ("\\binom{n}{2}", "\\frac{n(n+1)}{2}"),
    ("11\\sqrt2", "16\\sqrt2"),
    ("3\\pm2\\sqrt{2}", "3\\pm3\\sqrt{2}"),
    ("y=x", "y=2x"),
    ("y=2x+3", "2x-y=3"),
    # Of different kinds.
    ("(6,31,-1)", "48"),
    ("1,-2", "x+1"),
    ("5", "5,7"),
    ("[1,2]", "2"),
    ("(0,9)\\cup(9,36)", "31"),
    ("x\\in[-2,7]", "28"),
    ("x>5", "5"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "1"),
    ("y=2x+3", "44"),
    ("3,5,7", "3,5"),
    ("(1,2,3)", "1,2"),
    ("x+1", "ellipse"),
]
LEFT_TO_SYMPY = [
    ("\\sqrt{x^2}", "x"),  # not for a negative x
    ("9^{9^{9}}", "3"),
    ("1/2x", "\\frac{x}{2}"),
    ("x^23", "x^{23}"),
    ("\\frac{1}{0}", "5"),
    ("\\ln(x^2)", "2\\ln x"),  # not for a negative x
    ("\\log 100", "2"),  # of which base?
    ("\\sin^{-1} x", "\\arcsin x"),
    ("\\sin x^2", "\\sin(x^2)"),
    ("\\sin 2 \\cdot x", "\\sin(2x)"),
    ("\\sin(x)y", "y\\sin(x)"),
    ("sin(x)", "\\sin(x)"),
    ("\\sqrt{-4}", "2i"),
    ("\\arcsin(2)", "1"),
    ("e^{-200}", "e^{-300}"),
    ("e^{1000}", "e^{1000}+1"),
    ("x>5", "y>5"),
    ("x\\neq 5", "x>5"),
    ("2x>10", "x>5"),
    ("x>a", "(a,\\infty)"),
    ("3<x>2", "x>3"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(1,2)"),
    ("x=1", "1"),
    ("3!!", "720"),  # of a factorial, or a double factorial?
    ("2^3!", "64"),
    ("n!^2", "(n!)^2"),
    ("20000!", "1"),
    ("(-1)!", "1"),
    ("\\frac{1}{2}!", "1"),
    ("\\sqrt2x", "\\sqrt{2}x"),
    ("y=x^2", "y=x^3"),
    ("y=2x+3", "2x+3"),
    ("y=ex", "ey=e^2x"),
    ("xy=1", "y=\\frac{1}{x}"),
    ("(x-7)^2+y^2=12", "(x-7)^2+y^2=13"),
    ("x=5", "2x=10"),
    ("1,1", "1"),
    ("1,2,2", "1,2"),
    ("abc", "cab"),
    ("(1,2)", "1,2"),
    ("(1,2)", "none"),
    ("[2,2]", "2"),
    ("\\begin{pmatrix}5\\end{pmatrix}", "5"),
    ("1\\pm2\\pm3", "0"),
    ("(" * 5000, "x"),
    ("2^{2000000000}", "2^{2000000000}"),
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
    from shoal.rewards.answers.symbolic import same_expression  # noqa: PLC0415 - math-verify is an optional package

    for one, other in (
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * b}}}"),
        (f"\\sqrt{{{a}}}+\\sqrt{{{b}}}", f"\\sqrt{{{a + b}}}"),
    ):
        assert quickly_equal(one, other) is same_expression(one, other)


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9))
def test_sympy_agrees_about_functions_matrices_and_intervals(a: int, b: int) -> None:
    from shoal.rewards.answers.symbolic import same_expression  # noqa: PLC0415 - math-verify is an optional package

    for one, other in (
        (f"{a}\\sin x", f"{2 * a}\\sin\\frac{{x}}{{2}}\\cos\\frac{{x}}{{2}}"),
        (f"{a}\\sin x", f"{a}\\cos x"),
        (f"\\log_{{{a}}} {b}", f"\\frac{{\\ln {b}}}{{\\ln {a}}}"),
        (f"\\sqrt{{{a}x+{b}}}", f"\\sqrt{{{b}+{a}x}}"),
        (f"\\sqrt{{{a}x+{b}}}", f"\\sqrt{{{a}x+{b + 1}}}"),
        (f"{a}n!", f"n!\\cdot {a}"),
        (f"{a}n!", f"{b + 10}n!"),
        (f"{a + b}!", f"({a + b})({a + b - 1}!)"),
        (f"\\binom{{{a + b}}}{{{a}}}", f"\\frac{{{a + b}!}}{{{a}!{b}!}}"),
        (f"\\binom{{n}}{{{a}}}", f"\\binom{{n}}{{{a + 1}}}"),
        (f"y={a}x+{b}", f"{b}y={a * b}x+{b * b}"),
        (f"y={a}x+{b}", f"y={a}x-{b}"),
        (f"{a}\\pm\\sqrt{{{b}}}", f"{a}-\\sqrt{{{b}}},{a}+\\sqrt{{{b}}}"),
        (f"{a}\\pm\\sqrt{{{b}}}", f"{b + 10}\\pm\\sqrt{{{b}}}"),
        (f"{a},{b + 10}", f"{a}"),
        (f"({a},{b + 10})", f"{a}"),
        (f"{a}+{b}i", f"{b}i+{a}"),
        (f"{a}+{b}i", f"{a}-{b}i"),
        (f"{a}e^{{{b}}}", f"{b}e^{{{a}}}") if a != b else ("e^{2}", "e^{3}"),
        (f"(-\\infty,{a}]", f"(-\\infty,{a})"),
        (f"(-\\infty,{a})\\cup({a + b},\\infty)", f"({a + b},\\infty)\\cup(-\\infty,{a})"),
        (f"\\begin{{pmatrix}}{a}\\\\{b}\\end{{pmatrix}}", f"\\begin{{pmatrix}}{a}.0\\\\{b}\\end{{pmatrix}}"),
        (f"\\begin{{pmatrix}}{a}\\\\{b}\\end{{pmatrix}}", f"\\begin{{pmatrix}}{a + 1}\\\\{b}\\end{{pmatrix}}"),
    ):
        quick = quickly_equal(one, other)
        assert quick is not None, (one, other)
        assert quick is same_expression(one, other), (one, other)
