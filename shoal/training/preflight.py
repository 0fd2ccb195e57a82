"""The start-up check: what would make a run learn nothing, found before it starts."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import psutil
import torch

from shoal.config import ShoalConfig
from shoal.learners.memory_plan import estimate, of_one_rank, peak
from shoal.rewards.round_trips import round_trips
from shoal.rewards.scorer import MISSING, Scorer
from shoal.rollout.environment import CHECK_EPOCH, Item
from shoal.rollout.open import kind_of
from shoal.rollout.sampling import sampling_params
from shoal.runtime import Runtime
from shoal.tasks.base import Task
from shoal.training.parts import Parts
from shoal.types import FORMAT_PART, Completion, Group, Prompt, Segment, StopReason
from shoal.weight_sync.check import distances

WITHOUT_TRUTH = ("format", "max_length", "up_to_max_length")  # verifiers that do not look for a right answer
WRONG_ANSWER = "I do not know."
GIB = 2**30
FORMATTED = (
    "<think>\nI think.\n</think>\n\n<answer>\n{}\n</answer>",
    "<think>I think.</think> <answer>{}</answer>",
    "<think>I think.</think><answer>{}</answer>",
    "<think>I think.</think> {}",
    "<think>\nI think.\n</think>\n\n{}",
    "<answer>{}</answer>",
    "I think.\n\\boxed{{{}}}",
    "I think.\n#### {}",
    "<reasoning>\nI think.\n</reasoning>\n<answer>\n{}\n</answer>",
    "{}",
)
"""Completions in the usual formats."""
SHOWN_TESTS = 3


@dataclass
class CheckResult:
    """One line of the check. `ok` is None where the check does not apply."""

    name: str
    ok: bool | None
    detail: str


def check_rewards(task: Task, scorer: Scorer) -> CheckResult:
    """A known-right and a known-wrong answer to a real prompt, through the path that training uses.

    The task's own verifiers must score its demonstrated answer above the wrong one. Others may want another form, so
    the ground truth is tried in several more, one of which must score higher. That is asked of Shoal's verifiers of
    answers alone; a function of the user's may reward something else, such as brevity: then nothing is refused. Where
    the task demonstrates nothing, nothing is claimed. A run does not start where no score can be had.
    """
    name = "rewards"
    prompt = task.train[0]
    if not scorer.reward.verify:
        return CheckResult(name, None, "reward.verify=false: no verifier is asked")
    asked = prompt.verifiers or scorer.weights
    judged = any(map(scorer.asks_judge, asked))
    texts = [task.demonstrate(prompt)] if task.demonstrate else []
    if not set(asked) <= set(task.verifiers):
        texts += _forms(prompt.ground_truth)
    wrong, *right = (_answer(prompt, text) for text in [WRONG_ANSWER, *(texts[:1] if judged else texts)])
    scorer.score([Group(id="start-up check", completions=[wrong, *right], prompt=prompt)])
    # The verifiers' part only: the known-right answer need not have the format or the length that is rewarded.
    low, high = scorer.verified(wrong), [scorer.verified(answer) for answer in right]
    if low is None or (right and set(high) == {None}):
        return CheckResult(name, False, f"no score can be had: {_why_missing([wrong, *right])}")
    if judged:
        # What is good in a judge's eyes need not be what is right.
        return CheckResult(name, True, f"the judge replies: {' and '.join(str(score) for score in (low, *high))}")
    strict = [name for name in asked if _compares_answers(name, scorer)]
    if strict:
        low, high = _sum(wrong, strict, scorer), [_sum(answer, strict, scorer) for answer in right]
    if not right:
        return CheckResult(name, None, f"no right answer is known that could be tried; a wrong one scores {low}")
    known = [(score, answer.text) for score, answer in zip(high, right, strict=True) if score is not None]
    best, text = max(known, key=lambda pair: pair[0])
    detail = f"a right answer scores {best}, a wrong one {low} ({text!r} against {wrong.text!r})"
    if best > low:
        return CheckResult(name, True, detail)
    if len(right) > 1:
        detail += (
            f"; none of the {len(right)} ways in which the right answer was written scores higher: shoal score FILE "
            f"--verifier NAME tries answers of your own on {', '.join(asked)}"
        )
    if not strict:
        return CheckResult(name, None, f"{detail}; that is no fault in a reward for something else than the answer")
    return CheckResult(name, False if task.demonstrate else None, detail)


def check_format(parts: Parts) -> CheckResult | None:
    """A completion that has the rewarded format, written by the run's tokenizer and read as verifiers read it.

    Tags that the tokenizer cannot write, or that are lost on the way to the verifier, earn nobody the format's reward.
    None where no format is rewarded; nothing is claimed of a pattern that none of the usual forms has.
    """
    scorer, prompt = parts.scorer, parts.task.train[0]
    verified = scorer.reward.verify and FORMAT_PART in (prompt.verifiers or scorer.weights)
    if not (scorer.always or verified):
        return None
    truth, *_ = [*_forms(prompt.ground_truth), "42"]
    written = [form.format(truth) for form in FORMATTED]
    tokenizer = parts.info.tokenizer
    read = [parts.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in written]
    answers = [_answer(prompt, text) for text in (*written, *read)]
    scorer.score([Group(id="start-up check", completions=answers, prompt=prompt)])
    scores = [answer.reward_parts[FORMAT_PART] or 0.0 for answer in answers]
    best, at_best = max(scores[: len(written)]), max(scores[len(written) :])
    text = written[scores.index(best)]
    if best <= 0:
        return CheckResult("format", None, f"no text is known that has the format; {text!r} scores {best}")
    if at_best >= best:
        return CheckResult("format", True, f"{text!r} scores {at_best}")
    return CheckResult(
        "format",
        False,
        f"{text!r} scores {best}, but the tokenizer writes it as {read[scores.index(best)]!r}, which scores {at_best}: "
        "choose a format whose tags it has, or add them to the tokenizer",
    )


def check_program_tests(task: Task, scorer: Scorer) -> list[CheckResult]:
    """Which tests of programs compare the program with itself; nothing where no row is judged by them."""
    judged = [prompt for prompt in task.train if "code" in (prompt.verifiers or scorer.weights)]
    if not judged or not scorer.reward.verify:
        return []
    found = [(prompt.id, tests) for prompt in judged if (tests := round_trips(_own_truth(prompt)))]
    if not found:
        return [CheckResult("program tests", True, f"no test of {len(judged)} rows compares a program with itself")]
    shown = "; ".join(f"{name}: {tests[0]:.80}" for name, tests in found[:SHOWN_TESTS])
    detail = (
        f"in {len(found)} of {len(judged)} rows the program itself computes what a test expects (round trips), so that "
        f"one which gives back what it is given can pass: {shown}"
    )
    return [CheckResult("program tests", None, detail)]


def _own_truth(prompt: Prompt) -> Any:
    truth = prompt.ground_truth
    return truth["code"] if isinstance(truth, dict) and set(truth) == set(prompt.verifiers) else truth


def _compares_answers(name: str, scorer: Scorer) -> bool:
    """Whether a verifier is Shoal's and scores by the ground truth."""
    entry = scorer.entries.get(name)
    return entry is not None and entry.function.__module__.startswith("shoal.") and name not in WITHOUT_TRUTH


def _sum(answer: Completion, names: Sequence[str], scorer: Scorer) -> float:
    """The weighted sum of these verifiers' parts; a missing one counts nothing."""
    return sum(scorer.part_weights.get(name, 1.0) * (answer.reward_parts[name] or 0.0) for name in names)


def check_verifiers(task: Task, scorer: Scorer) -> CheckResult:
    """Which verifier judges how many of the training prompts, and what judges none."""
    name = "verifiers"
    if not scorer.reward.verify:
        return CheckResult(name, None, "reward.verify=false: none is asked")
    counts = Counter(verifier for prompt in task.train for verifier in (prompt.verifiers or scorer.weights))
    total = len(task.train)
    lines = [
        f"{verifier} judges {'all' if count == total else f'{count} of'} {total} prompts (weight "
        f"{scorer.part_weights.get(verifier, 1.0):g})"
        for verifier, count in counts.most_common()
    ]
    idle = [f"reward.options.{verifier}" for verifier in scorer.reward.options if verifier not in counts]
    lines += [f"{key} has no effect on any of them" for key in idle]
    return CheckResult(name, None if idle else True, "; ".join(lines))


def _forms(ground_truth: Any) -> list[str]:
    """The ways in which a ground truth is answered, if it is a short text or a number, or a list of some."""
    truth = ground_truth[0] if isinstance(ground_truth, list) and ground_truth else ground_truth
    if not isinstance(truth, str | int | float):
        return []
    return [
        form.format(truth) for form in ("{}", "<answer>{}</answer>", "\\boxed{{{}}}", "#### {}", "The answer is {}.")
    ]


def _why_missing(answers: Sequence[Completion]) -> str:
    reasons = {f"{name}: {why}" for answer in answers for name, why in answer.info.get(MISSING, {}).items()}
    return "; ".join(sorted(reasons))


def _answer(prompt: Prompt, text: str) -> Completion:
    return Completion(segments=[Segment(prompt.token_ids, [], [], [])], stop_reason=StopReason.STOP, text=text)


def check_logprobs(cfg: ShoalConfig, parts: Parts, tolerance: float) -> CheckResult:
    """The sampler's log-probs of a few sampled tokens against the learner's of the same tokens."""
    sampling = sampling_params(cfg, {"max_new_tokens": min(12, cfg.sampling.max_new_tokens)})
    items = [Item(prompt, CHECK_EPOCH) for prompt in parts.task.train[:2]]
    groups = parts.rollouts.sample(items, size=2, sampling=sampling, judged=False)
    parts.engine.statistics()  # these tokens are not the first step's
    segments = [segment for group in groups for completion in group.completions for segment in completion.segments]
    theirs = parts.learner.logprobs(segments, sampling.temperature)
    # What others said between a model's turns was not sampled.
    masks = [segment.mask for segment in segments]
    sampled = [list(compress(segment.logprobs, segment.mask)) for segment in segments]
    differences = distances(sampled, [list(compress(row, mask)) for row, mask in zip(theirs, masks, strict=True)])
    if not differences:
        reasons = sorted({completion.stop_reason.value for group in groups for completion in group.completions})
        return CheckResult(
            "log-probs", False, f"the engine sampled no token: its completions ended with {' and '.join(reasons)}"
        )
    largest, mean = max(differences), sum(differences) / len(differences)
    detail = (
        f"sampler and learner differ by {mean:.1e} on average, {largest:.1e} at most, over {len(differences)} tokens"
    )
    if sampling.top_p < 1 or sampling.top_k > 0:
        return CheckResult(
            "log-probs",
            None,
            f"{detail}; with top_p or top_k the sampler's distribution is not the learner's: "
            "watch sampler/* in the metrics, and consider algorithm.correction",
        )
    return CheckResult("log-probs", largest <= tolerance, f"{detail} (allowed: {tolerance:.1e})")


def check_memory(plan: dict[str, int], runtime: Runtime) -> CheckResult:
    """The plan against what the device has free, before anything big is allocated.

    The KV cache is planned for completions that all reach the limit. On a CPU it takes pages as completions grow, so a
    run that has room for everything else is not refused: it is told what would happen, and which key bounds it.
    """
    on_gpu = runtime.device.type == "cuda"
    free = torch.cuda.mem_get_info(runtime.device)[0] if on_gpu else psutil.virtual_memory().available
    total = peak(plan)
    largest = max(plan, key=lambda part: plan[part])
    detail = f"{total / GIB:.2f} GiB planned (most: {largest}, {plan[largest] / GIB:.2f}), {free / GIB:.1f} GiB free"
    without = peak({**plan, "kv_cache": 0})
    if total <= free or without > free or on_gpu:
        return CheckResult("memory", total <= free, detail)
    return CheckResult(
        "memory",
        None,
        f"{detail}: the KV cache takes that much only where all completions reach sampling.max_new_tokens at once; "
        f"without it {without / GIB:.2f} GiB are planned. Lower engine.max_batch or set engine.max_cache_tokens to "
        "bound it",
    )


def rank_memory(cfg: ShoalConfig, plan: dict[str, int]) -> CheckResult:
    """The plan of one rank of learner=deepspeed. What its node has free is not known here, and the rank has loaded the
    model already."""
    held = of_one_rank(cfg, plan)
    largest = max(held, key=lambda part: held[part])
    return CheckResult(
        "memory", True, f"{peak(held) / GIB:.2f} GiB planned for each rank (most: {largest}, {held[largest] / GIB:.2f})"
    )


def longest_prompt(cfg: ShoalConfig, task: Task) -> int | None:
    """Tokens of the longest prompt that completions will follow; None where turns or environments add to prompts."""
    prompts = (*task.train, *task.evaluation)
    if cfg.source.kind == "rollout_api" or kind_of(cfg) != "single_turn" or not prompts:
        return None
    return max(len(prompt.token_ids) for prompt in prompts)


def check_disk(cfg: ShoalConfig, folder: Path, checkpoint_bytes: int) -> CheckResult:
    """Room for every checkpoint that will be kept, the best and the final model, and one being written."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    needed = checkpoint_bytes * (cfg.checkpoint.keep_last + 3)
    return CheckResult(
        "disk", needed <= free, f"{needed / GIB:.2f} GiB needed for checkpoints, {free / GIB:.1f} GiB free"
    )


def run_checks(cfg: ShoalConfig, parts: Parts, folder: Path) -> list[CheckResult]:
    """All checks, in the order of what they cost."""
    plan = estimate(cfg, parts.runtime, parts.info, longest_prompt(cfg, parts.task))
    saved = sum(plan[part] for part in ("optimizer", "master") if part in plan)
    if cfg.model.train == "lora":  # the base stays where it came from
        saved += parts.info.adapter_parameters() * parts.runtime.param_dtype.itemsize
    else:
        saved += plan["weights"]
    formatted = None if cfg.source.kind == "rollout_api" else check_format(parts)
    return [
        check_disk(cfg, folder, saved),
        check_memory(plan, parts.runtime) if cfg.learner.kind == "local" else rank_memory(cfg, plan),
        *(
            [CheckResult("rewards", None, "the environments give them")]
            if cfg.source.kind == "rollout_api"
            else [check_verifiers(parts.task, parts.scorer), check_rewards(parts.task, parts.scorer)]
        ),
        *([formatted] if formatted else ()),
        *check_program_tests(parts.task, parts.scorer),
        check_logprobs(cfg, parts, parts.sync.check.tolerance),
    ]
