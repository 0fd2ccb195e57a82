"""More verdicts by kind: what is right in another writing, and what is nearly right."""

from typing import Any

Rows = list[tuple[str, str, float]]
"""(answer, ground truth, score); the answer stands in a box."""

MATH_BOXED: dict[str, Rows] = {
    "plain text": [
        ("pi/2", "\\frac{\\pi}{2}", 1), ("3pi/4", "\\frac{3\\pi}{4}", 1), ("pi/3", "\\frac{\\pi}{2}", 0),
        ("-2*pi", "-2\\pi", 1), ("2*pi", "-2\\pi", 0), ("sqrt(3)", "\\sqrt{3}", 1), ("sqrt3", "\\sqrt{3}", 1),
        ("2sqrt(3)", "2\\sqrt{3}", 1), ("2*sqrt(3)", "2\\sqrt{3}", 1), ("sqrt(5)", "\\sqrt{3}", 0),
        ("(1+sqrt(5))/2", "\\frac{1+\\sqrt{5}}{2}", 1), ("(1-sqrt(5))/2", "\\frac{1+\\sqrt{5}}{2}", 0),
        ("exp(16)-1", "e^{16}-1", 1), ("exp(15)-1", "e^{16}-1", 0), ("x**2+1", "x^2+1", 1), ("x**3+1", "x^2+1", 0),
        ("infinity", "\\infty", 1), ("-infinity", "\\infty", 0), ("(-inf, 3)", "(-\\infty,3)", 1),
        ("(-inf, 3]", "(-\\infty,3)", 0), ("(-inf,1) U (2,inf)", "(-\\infty,1)\\cup(2,\\infty)", 1),
        ("sin(x)", "\\sin x", 1), ("cos(x)", "\\sin x", 0), ("ln(4)", "2\\ln 2", 1), ("2^(1/2)", "\\sqrt2", 1),
    ],
    "Unicode": [
        ("√3", "\\sqrt3", 1), ("2√3", "\\sqrt{12}", 1), ("√5", "\\sqrt3", 0), ("√(x+1)", "\\sqrt{x+1}", 1),
        ("∛16", "2\\sqrt[3]{2}", 1), ("x²+1", "x^2+1", 1), ("x³+1", "x^2+1", 0), ("10⁻³", "0.001", 1),
        ("∞", "\\infty", 1), ("-∞", "\\infty", 0), ("(-∞, 3]", "(-\\infty,3]", 1), ("½", "0.5", 1),
        ("1½", "\\frac32", 1), ("¾", "0.75", 1), ("¼", "0.75", 0), ("2π", "2\\pi", 1), ("π²", "\\pi^2", 1),
        ("x ≤ 3", "x \\leq 3", 1), ("x ≥ 3", "x \\leq 3", 0), ("3×4", "12", 1), ("3·4", "12", 1), ("−5", "-5", 1),
        ("(−∞,1)∪(2,∞)", "(-\\infty,1)\\cup(2,\\infty)", 1), ("∅", "\\emptyset", 1), ("１８", "18", 1),
        ("413₅", "413_5", 1), ("±2", "\\pm 2", 1),
    ],
    "braces left out": [
        ("\\frac12", "0.5", 1), ("\\frac{1}2", "0.5", 1), ("\\frac1{2}", "0.5", 1), ("\\frac13", "0.5", 0),
        ("\\frac\\pi2", "\\frac{\\pi}{2}", 1), ("\\frac x2", "\\frac{x}{2}", 1), ("\\dfrac34", "0.75", 1),
        ("\\sqrt2", "\\sqrt{2}", 1), ("\\sqrt 2", "\\sqrt{2}", 1), ("\\sqrt x", "\\sqrt{x}", 1),
        ("\\sqrt(2)", "\\sqrt{2}", 1), ("4\\sqrt(2)", "4", 0), ("2^10", "1024", 1), ("2^-1", "0.5", 1),
        ("10^20", "10^{20}", 1), ("10^21", "10^{20}", 0), ("x^12", "x^{12}", 1), ("\\binom52", "10", 1),
    ],
    "units": [
        ("12\\pi \\text{ cm}^2", "12\\pi", 1), ("12\\pi\\text{ cm}^{2}", "12\\pi", 1), ("12\\pi cm^2", "12\\pi", 1),
        ("12\\pi \\mathrm{~cm}^2", "12\\pi", 1), ("12\\pi", "12\\pi\\text{ cm}^2", 1),
        ("11\\pi \\text{ cm}", "12\\pi", 0),
        ("\\pi\\text{ rad}", "\\pi", 1), ("\\frac{\\pi}{3} radians", "\\frac{\\pi}{3}", 1),
        ("12\\pi \\text{ square units}", "12\\pi", 1), ("12\\pi \\text{ units}^2", "12\\pi", 1),
        ("2\\sqrt{3}~\\mathrm{cm}", "2\\sqrt{3}", 1), ("5 \\text{ cm}", "5 \\text{ m}", 0), ("5 cm", "5 m", 0),
        ("5 \\text{ cm}^2", "5 \\text{ cm}^3", 0), ("5 \\text{ cm}", "5 \\text{ cm}^2", 0), ("5 cm", "5\\text{ cm}", 1),
        ("5 centimeters", "5 \\text{ cm}", 1), ("5 square centimeters", "5 \\text{ cm}^2", 1), ("5 km/h", "5", 1),
        ("5 km/h", "5 \\text{ km per hour}", 1), ("5 km/h", "5 \\text{ m/s}", 0), ("5 hours", "5 \\text{ minutes}", 0),
        ("5 hours", "5", 1), ("60^\\circ", "60", 1), ("60°", "60^\\circ", 1), ("60 degrees", "60^\\circ", 1),
        ("60 radians", "60^\\circ", 0), ("18 apples", "18", 1), ("5 \\text{ m}", "5", 1), ("5x", "5", 0),
    ],
    "currency": [
        ("€10", "10", 1), ("10€", "10", 1), ("10 €", "10", 1), ("£10", "10", 1), ("¥500", "500", 1), ("₹500", "500", 1),
        ("$10", "10", 1), ("\\$10", "10", 1), ("10 USD", "10", 1), ("USD 10", "10", 1), ("US$10", "10", 1),
        ("10 dollars", "\\$10", 1), ("10 euros", "€10", 1), ("€10", "\\$10", 0), ("10 cents", "\\$10", 0),
        ("€11", "10", 0), ("£1,000", "1000", 1), ("-€10", "-10", 1), ("€10.50", "10.5", 1),
    ],
    "percent": [
        ("50 percent", "50\\%", 1), ("50\\text{ percent}", "50", 1), ("50 per cent", "0.5", 1), ("50%", "50", 1),
        ("5 percent", "50", 0), ("5 percent", "0.5", 0), ("12.5 percent", "12.5\\%", 1),
    ],
    "upright letters and the imaginary unit": [
        ("1-\\frac1e", "1-\\frac{1}{\\mathrm{e}}", 1), ("\\mathrm{e}^2", "e^2", 1), ("\\mathrm{e}^3", "e^2", 0),
        ("2\\mathrm{i}", "2i", 1), ("\\sqrt{-1}", "i", 1), ("\\sqrt{-1}", "-i", 0), ("2\\sqrt{-1}", "2i", 1),
        ("3+\\sqrt{-4}", "3+2i", 1), ("3-\\sqrt{-4}", "3+2i", 0), ("\\mathrm e", "e", 1),
    ],
    "tiny and nearly equal numbers": [
        ("\\frac{1}{2006!}", "\\frac{1}{2004!}", 0), ("\\frac{1}{2006!}", "\\frac{1}{2006!}", 1),
        ("\\frac{1}{1001!}", "\\frac{1}{1001 \\cdot 1000!}", 1), ("\\frac{1}{100!}", "0", 0),
        ("10^{-40}", "10^{-41}", 0), ("10^{-40}", "\\frac{1}{10^{40}}", 1), ("10^{-40}", "0", 0),
        ("2^{-1000}", "2^{-1001}", 0), ("2^{-1000}", "\\frac{1}{2^{1000}}", 1), ("2^{-20000}", "2^{-20001}", 0),
        ("1-\\frac{1}{2^{2006}}", "1-\\frac{1}{2^{2007}}", 0), ("1-\\frac{1}{2^{2006}}", "1", 0),
        ("2^{20000}+1", "2^{20000}", 0), ("2\\cdot2^{19999}", "2^{20000}", 1), ("10^{100}+1", "10^{100}", 0),
        ("e^{-100}", "e^{-101}", 0), ("e^{-100}", "0", 0), ("1-e^{-200}", "1", 0), ("1-10^{-70}\\sqrt2", "1", 0),
        ("0.99999999999999999999", "1", 0), ("0.5000000001", "0.5", 0), ("3.14159265358979", "\\pi", 0),
        ("0.333333333333", "\\frac13", 0), ("\\binom{4000}{2000}", "\\binom{4000}{1999}", 0),
        ("1.41421356237309504880", "\\sqrt2", 0),
    ],
}  # fmt: skip

MATH_PROSE: Rows = [
    ("He pays $5 and then $13. In total $18.", "18", 1), ("He pays $5 and then $13. In total $18.", "13", 0),
    ("$9-$4=$5, so he has $5 left.", "5", 1), ("It is $5, not $6 (or $7).", "6", 1), ("He has $1,250.50.", "1250.5", 1),
    ("She earns $10 per hour and $20 at night, so $30.", "30", 1), ("We get $x=5$.", "5", 1),
    ("It costs \\$5 and \\$6, so $11$.", "11", 1), ("The sum is $2\\pi$.", "2\\pi", 1),
    ("It costs $5 or $6; we want $\\frac{1}{2}$.", "0.5", 1), ("The answer is $18.", "18", 1),
    ("The answer is $18.00 per day.", "18", 1), ("The total is $$18$$", "18", 1), ("so $3 + $4 = $7", "7", 1),
    ("It is -$5.", "-5", 1), ("It fell by 3 to -7.", "-7", 1), ("He pays €5 and then €13.", "13", 1),
]  # fmt: skip

GSM8K: Rows = [
    ("#### 1e3", "1000", 1), ("#### 1e3", "100", 0), ("#### 1.5E3", "1500", 1), ("\\boxed{1.8\\times 10^{1}}", "18", 1),
    ("\\boxed{1.8\\times 10^{2}}", "18", 0), ("\\boxed{1.8 \\cdot 10^1}", "18", 1), ("1.8 x 10^1", "18", 1),
    ("\\boxed{10^3}", "1000", 1), ("\\boxed{10^3}", "10", 0), ("\\boxed{2^3}", "8", 1), ("\\boxed{2^3}", "2", 0),
    ("The answer is 3,5", "3,5", 1), ("#### 3,5", "3,5", 1), ("#### 3.5", "3,5", 1), ("#### 5", "3,5", 0),
    ("#### ½", "0.5", 1), ("#### 1½", "1.5", 1), ("#### 2½", "1.5", 0), ("50 percent", "0.5", 1), ("12 cm^2", "12", 1),
    ("18 eggs", "18", 1), ("1e3x", "1", 1), ("#### 1.2e-1", "0.12", 1),
]  # fmt: skip


def rule(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"instruction_id_list": [name], "kwargs": [kwargs]}


CAPITAL, SMALL = rule("change_case:english_capital"), rule("change_case:english_lowercase")
SECOND = rule("length_constraints:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=2, first_word="then")
IFEVAL: list[tuple[str, Any, float | None]] = [
    ("BUY FRESH BREAD TODAY.", CAPITAL, 1), ("HELLO", CAPITAL, 1), ("STOP!", CAPITAL, 1),
    ("Buy FRESH BREAD.", CAPITAL, 0),
    ("BUENOS DIAS, COMO ESTA USTED HOY? ESPERO QUE EL TRABAJO VAYA BIEN.", CAPITAL, 0), ("123", CAPITAL, 0),
    ("BONJOUR, COMMENT ALLEZ-VOUS AUJOURD'HUI? JE SUIS TRES CONTENT DE VOUS VOIR.", CAPITAL, 0),
    ("ПРИВЕТ, КАК ДЕЛА", CAPITAL, 0), ("buy fresh bread today.", SMALL, 1), ("hello there", SMALL, 1),
    ("guten morgen, wie geht es ihnen", SMALL, 0), ("Hello", SMALL, 0),
    ("First a.\n\nThen b.", SECOND, 1), ("First a.\n\n\n\nThen b.", SECOND, 1), ("First a.\n\n \n\nThen b.", SECOND, 1),
    ("First a.\n\n\n\nBut b.", SECOND, 0), ("\n\nFirst a.\n\nThen b.\n\n", SECOND, 1), ("Then b.", SECOND, 0),
]  # fmt: skip

VERDICTS: list[tuple[str, str, Any, float | None]] = [
    *(("math", f"\\boxed{{{answer}}}", truth, score) for rows in MATH_BOXED.values() for answer, truth, score in rows),
    *(("math", *row) for row in MATH_PROSE),
    *(("gsm8k", *row) for row in GSM8K),
    *(("ifeval", *row) for row in IFEVAL),
]
