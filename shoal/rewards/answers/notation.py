r"""One notation for mathematics that is written in plain text, in Unicode or in careless LaTeX.

`pi/2`, `√3`, `x²`, `1½`, `\frac12`, `x^10` and `sqrt(-1)` become `\pi/2`, `\sqrt{3}`, `x^{2}`, `1\frac{1}{2}`,
`\frac{1}{2}`, `x^{10}` and `i`. What is none of these stays as it is.
"""

from __future__ import annotations

import re
from unicodedata import normalize

SYMBOLS = {
    "π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ", "÷": "\\div ",
    "≤": "\\leq ", "≥": "\\geq ", "⩽": "\\leq ", "⩾": "\\geq ", "≠": "\\neq ", "±": "\\pm ", "∓": "\\mp ",
    "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "∈": "\\in ", "√": "\\sqrt ", "∛": "\\sqrt[3] ",
    "∜": "\\sqrt[4] ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}",
    "ℂ": "\\mathbb{C}", "∑": "\\sum ", "∫": "\\int ", "−": "-", "–": "-", "⁄": "/", "∕": "/", "º": "^\\circ ",
    "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ", "ε": "\\epsilon ", "θ": "\\theta ",
    "λ": "\\lambda ", "μ": "\\mu ", "ρ": "\\rho ", "σ": "\\sigma ", "τ": "\\tau ", "φ": "\\phi ", "ω": "\\omega ",
}  # fmt: skip
FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅐": (1, 7),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
TABLE = str.maketrans({**SYMBOLS, **{sign: f"\\frac{{{a}}}{{{b}}}" for sign, (a, b) in FRACTIONS.items()}})
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎"
RAISED_RUN, LOWERED_RUN = re.compile(f"[{RAISED}]+"), re.compile(f"[{LOWERED}]+")
LOWER = str.maketrans(RAISED + LOWERED, "0123456789+-()ni0123456789+-()")

WORDS = "alpha|beta|gamma|delta|theta|lambda|mu|sigma|omega|phi|pi|sqrt|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc"
WORD = re.compile(rf"(?<![\\A-Za-z])({WORDS}|exp|ln|log)(?![A-Za-z])")
INFINITE = re.compile(r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", re.IGNORECASE)
UNION = re.compile(r"(?<=[)\]])\s*[Uu]\s*(?=[(\[])")
PERCENT = re.compile(r"\s*(?<![A-Za-z])(?:percent|per\s?cent|pct)(?![A-Za-z])\.?", re.IGNORECASE)
ROMAN = re.compile(r"\{\\rm\s+([^{}]*)\}|\\(?:mathrm|mathbf|mathit|text|rm)\s+([A-Za-z])(?![A-Za-z])")
BARE_POWER = re.compile(r"(\^|\*\*)\s*(-?\d{2,}|-\d)(?![\d.])|(\^|\*\*)\s*-\s*([A-Za-z])(?![A-Za-z])")
ROOT = re.compile(r"\\sqrt\s*(\[[^\[\]]*\])?\s*(?!\s*\{)(?=\S)")
TWO_ARGUMENTS = re.compile(r"\\(frac|binom)(?![A-Za-z])")
ARGUMENT = re.compile(r"\s*(\\[A-Za-z]+|\d+(?:\.\d+)?|[A-Za-z])")
ONE_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|[0-9A-Za-z])")
ROOT_OF_NEGATIVE = re.compile(r"\\sqrt\{\s*-\s*(\d+(?:\.\d+)?)\s*\}")


def one_notation(text: str) -> str:
    """The text with its mathematics in LaTeX, every argument in braces."""
    if not text.isascii():
        text = RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(LOWER)}}}", text)
        text = LOWERED_RUN.sub(lambda run: f"_{{{run[0].translate(LOWER)}}}", text)
        text = normalize("NFKC", text.translate(TABLE)).translate(TABLE)
    if any(map(str.isalpha, text)):
        text = PERCENT.sub("%", ROMAN.sub(lambda one: f"{{{one[1] or one[2]}}}", text))
        text = INFINITE.sub(r"\\infty ", WORD.sub(r"\\\1 ", text))
        text = UNION.sub(r"\\cup ", text)
    text = BARE_POWER.sub(lambda one: f"{one[1] or one[3]}{{{one[2] or '-' + one[4]}}}", text)
    if "\\" in text:
        text = _in_two_braces(_roots_in_braces(text))
        text = ROOT_OF_NEGATIVE.sub(lambda root: "i" if root[1] == "1" else f"\\sqrt{{{root[1]}}}i", text)
    return text.replace("+/-", "\\pm ")


def _roots_in_braces(text: str) -> str:
    r"""\sqrt 2, \sqrt12, \sqrt(x+1) and \sqrt[3]x with their arguments in braces."""
    parts, position = [], 0
    for root in ROOT.finditer(text):
        if root.start() < position:
            continue
        end = _end_of_bracket(text, root.end()) if text.startswith("(", root.end()) else None
        argument = ARGUMENT.match(text, root.end())
        if end is not None:
            inside, after = text[root.end() + 1 : end - 1], end
        elif argument is not None and not argument[1].startswith(("\\frac", "\\sqrt", "\\binom", "\\left")):
            inside, after = argument[1], argument.end()
        else:
            continue
        parts += [text[position : root.start()], f"\\sqrt{root[1] or ''}{{{_roots_in_braces(inside)}}}"]
        position = after
    return "".join([*parts, text[position:]])


def _end_of_bracket(text: str, start: int) -> int | None:
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position + 1
    return None


def _in_two_braces(text: str) -> str:
    r"""\frac12, \frac{1}2, \frac\pi2 and \binom52 with both arguments in braces."""
    parts, position = [], 0
    for command in TWO_ARGUMENTS.finditer(text):
        start, arguments = command.end(), []
        for _ in range(2):
            token = ONE_TOKEN.match(text, start)
            if token is not None and token[1] not in ("\\frac", "\\sqrt", "\\binom"):
                arguments.append(token[1])
                start = token.end()
            elif (brace := re.compile(r"\s*\{").match(text, start)) is not None:
                end = _end_of_braces(text, brace.end() - 1)
                if end is None:
                    break
                arguments.append(None)
                if len(arguments) == 1 and ONE_TOKEN.match(text, end) is None:
                    break  # nothing to do: a second group follows
                arguments[-1] = text[brace.end() : end - 1]
                start = end
            else:
                break
        if command.start() >= position and len(arguments) == 2 and None not in arguments:
            inside = "".join(f"{{{_in_two_braces(argument or '')}}}" for argument in arguments)
            parts += [text[position : command.start()], f"\\{command[1]}{inside}"]
            position = start
    return "".join([*parts, text[position:]])


def _end_of_braces(text: str, start: int) -> int | None:
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return position + 1
    return None
