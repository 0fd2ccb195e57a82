"""Verifying 4,096 completions against the time in which the CPU engine generates them.

The engine samples them from the default task's architecture (0.41M parameters, the least that generation can cost),
with no end-of-sequence id, so that each has all its tokens. What is verified are made-up solutions of as many words, in
groups of 8 that share a problem: half of the answers right. For `math` three problems in four have a fraction for an
answer, one in eight a polynomial, one in sixteen a root, and one in sixteen a matrix, a complex number, a sine or a
union of intervals. One problem in `--hard` has an absolute value, a floor or a sum for an answer instead, which only
math-verify and sympy can judge. One in 128 is 0.8 %. Of pairs of about 290 ground truths of MATH-500 with other
writings of them, with another number in them, with a plain number and with the truths of other problems 0.4 % were left
to sympy.

An answer repeats in its group: the wrong one stands there four times, three right writings four times between them.
Scored by `Scorer`, as in training, with one worker process that has started, beside the scorer's own. Each figure is
the median of `--runs`.

    python benchmarks/rewards.py
"""

from __future__ import annotations

import argparse
from functools import partial
from random import Random
from statistics import median
from time import perf_counter
from types import SimpleNamespace

from story_shape import story_shaped_model

from shoal.config.nodes.data import RewardConfig
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.engines.base import Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.rewards.scorer import Scorer
from shoal.runtime import prepare_process, tune_malloc
from shoal.types import Completion, Group, Prompt, Segment, StopReason

COMPLETIONS, GROUP = 4096, 8
TEXT = "so we add the two parts and find that each of them has as many apples as there are boxes on a shelf"


def generate(tokens: int) -> float:
    """Seconds in which the engine samples all completions."""
    model = story_shaped_model(eos_token_id=None, pad_token_id=0).eval()
    engine = TorchEngine(model, SimpleNamespace(eos_token_id=None), max_batch=256)
    prompt = tuple(range(20))
    requests = [
        Request(str(index), prompt, index, SamplingParams(tokens), str(index // GROUP)) for index in range(COMPLETIONS)
    ]
    start = perf_counter()
    made = sum(len(output.token_ids) for output in engine.generate(requests))
    assert made == COMPLETIONS * tokens
    return perf_counter() - start


def gsm8k_problem(random: Random) -> tuple[str, list[str], str]:
    """Ground truth, right answers, and a wrong one."""
    value = random.randint(2, 5000)
    return str(value), [str(value), f"{value:,}", f"${value}.00"], str(value + 1)


def math_problem(random: Random, hard: int) -> tuple[str, list[str], str]:
    """As `gsm8k_problem`; one in `hard` is for sympy."""
    a, b, kind = random.randint(2, 99), random.randint(2, 99), random.randrange(16)
    if hard and random.randrange(hard) == 0:
        return hard_problem(a, b, random.randrange(3))
    if kind < 12:
        return f"\\frac{{{a}}}{{{b}}}", [f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"\\frac{{{2 * a}}}{{{2 * b}}}"], str(a)
    if kind < 14:
        truth = f"{a}x^2+{b}x"
        return truth, [truth, f"{b}x+{a}x^2", f"x({a}x+{b})"], f"{a}x^2-{b}x"
    if kind < 15:
        truth = f"{a}\\sqrt{{{b}}}"
        return truth, [truth, f"\\sqrt{{{a * a * b}}}", f"\\sqrt{{{b}}}\\cdot {a}"], f"\\sqrt{{{a * b}}}"
    return special_problem(a, b, random.randrange(4))


def hard_problem(a: int, b: int, kind: int) -> tuple[str, list[str], str]:
    """As `gsm8k_problem`. None of the answers is the ground truth as it stands."""
    if kind == 0:
        return f"|{a}x+{b}|", [f"|{b}+{a}x|", f"|-{a}x-{b}|", f"|{a}x + {b}.0|"], f"{a}x+{b}"
    if kind == 1:
        truth, floor = f"{a}\\lfloor x\\rfloor+{b}", "\\lfloor x\\rfloor"
        return truth, [f"{b}+{a}{floor}", f"{floor}\\cdot {a}+{b}", f"{a}({floor}+1)+{b - a}"], f"{a}x+{b}"
    truth = f"\\sum_{{k=1}}^{{n}} {a}k"
    return truth, [f"\\frac{{{a}n(n+1)}}{{2}}", f"{a}\\sum_{{k=1}}^{{n}} k", f"{a}n(n+1)/2"], f"{a}n^2"


def special_problem(a: int, b: int, kind: int) -> tuple[str, list[str], str]:
    """As `gsm8k_problem`."""
    if kind == 0:
        truth = f"{a}+{b}i"
        return truth, [truth, f"{b}i+{a}", f"{a}.0+{b}i"], f"{a}-{b}i"
    if kind == 1:
        truth = f"{a}\\sin {b}x"
        return truth, [truth, f"{a}\\sin({b}x)", f"{a}\\cos(\\frac{{\\pi}}{{2}}-{b}x)"], f"{a}\\cos {b}x"
    if kind == 2:
        low, high = f"(-\\infty,{a})", f"({a + b},\\infty)"
        truth = f"{low}\\cup{high}"
        return truth, [truth, f"{high}\\cup{low}", f"{low} \\cup ({2 * (a + b)}/2, \\infty)"], f"({a},{a + b})"
    truth = column(a, b)
    return truth, [truth, column(f"\\frac{{{2 * a}}}{{2}}", b), column(a, f"{b}.0")], column(b + 1, a)


def column(first: object, second: object) -> str:
    return f"\\begin{{pmatrix}}{first}\\\\{second}\\end{{pmatrix}}"


def make_groups(verifier: str, words: int, hard: int) -> list[Group]:
    random = Random(0)
    problem = gsm8k_problem if verifier == "gsm8k" else partial(math_problem, hard=hard)
    place = "\n#### {}" if verifier == "gsm8k" else " \\boxed{{{}}}"
    groups = []
    for index in range(COMPLETIONS // GROUP):
        truth, right, wrong = problem(random)
        completions = []
        for number in range(GROUP):
            answer = random.choice(right) if number % 2 else wrong
            text = " ".join(random.choices(TEXT.split(), k=words)) + place.format(answer)
            completions.append(Completion([Segment([], [], [], [])], StopReason.STOP, text))
        groups.append(Group(str(index), completions, Prompt(str(index), [], truth)))
    return groups


def warm_up() -> list[Group]:
    """For what happens once in a run: worker processes start, import sympy, and learn the hard answers' grammar."""
    groups = []
    for kind in range(3):
        truth, right, wrong = hard_problem(1000, 2001, kind)
        completions = [
            Completion([Segment([], [], [], [])], StopReason.STOP, f"\\boxed{{{answer}}}") for answer in (*right, wrong)
        ]
        groups.append(Group("warm up", completions, Prompt("warm up", [], truth)))
    return groups


def verify(verifier: str, words: int, workers: int, hard: int) -> float:
    """Seconds in which the scorer judges all completions."""
    groups = make_groups(verifier, words, hard)
    with Scorer(RewardConfig(workers=workers), {verifier: 1.0}) as scorer:
        scorer.score(warm_up())
        start = perf_counter()
        report = scorer.score(groups)
        elapsed = perf_counter() - start
    right = report.verifiers[verifier].scores.count(1.0)
    assert right == COMPLETIONS // 2 and not report.missing, (right, report.explanation())
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description="Verification against generation")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 128, 256], help="lengths to generate")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--hard", type=int, default=128, help="one problem in so many is for sympy; 0: none")
    arguments = parser.parse_args()
    prepare_process(RuntimeConfig(threads=1))
    tune_malloc()
    for tokens in arguments.tokens:
        seconds: dict[str, list[float]] = {"generate": [], "gsm8k": [], "math": []}
        for _ in range(arguments.runs):
            for verifier in ("gsm8k", "math"):
                seconds[verifier].append(verify(verifier, tokens, arguments.workers, arguments.hard))
            seconds["generate"].append(generate(tokens))
        generation = median(seconds["generate"])
        print(f"{COMPLETIONS} completions of {tokens} tokens: {generation:.2f} s to generate")
        for verifier in ("gsm8k", "math"):
            elapsed = median(seconds[verifier])
            each = 1e6 * elapsed / COMPLETIONS
            print(f"  {verifier}: {elapsed:.2f} s, {each:.0f} us each, {elapsed / generation:.1%} of generation")


if __name__ == "__main__":
    main()
