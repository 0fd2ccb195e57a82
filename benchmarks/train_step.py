"""One optimizer step of Shoal's learner against a padded Hugging Face step on the same 256 completions.

    python benchmarks/train_step.py [--rounds 15]

The story model (0.41M parameters), 32 groups of 8, prompts of 16-20 tokens, completions of 10-40; a third of the
groups have equal rewards, so zero advantage. The Hugging Face step is the usual one: float32, one padded batch, whole
logits, log-softmax, clipped loss, backward, clipping, AdamW. Each variant lives in a process of its own with one
thread, because malloc's settings belong to a process; steps alternate, and the fastest and the median of all rounds
are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from random import Random
from statistics import median
from time import perf_counter

import numpy as np
import torch
from story_shape import VOCABULARY, story_shaped_model

from shoal.config import ShoalConfig
from shoal.learners.cpu.mixed import use_mixed_linears
from shoal.learners.cpu.norm import use_lean_norms
from shoal.learners.cpu.rotary import use_rotary_tables
from shoal.learners.cpu.tree_attention import use_tree_attention
from shoal.learners.local import LocalLearner
from shoal.learners.model import Policy
from shoal.models.info import describe
from shoal.runtime import prepare_process, resolve_runtime, tune_malloc
from shoal.types import Batch, TrainSequence

VARIANTS = {
    "hf": "padded Hugging Face step, float32",
    "hf_malloc": "the same with Shoal's malloc settings",
    "shoal_float32": "Shoal, float32 products",
    "shoal": "Shoal as it comes",
}
LR, CLIP, MAX_NORM = 3e-4, 0.2, 1.0


def make_groups() -> list[tuple[list[int], list[tuple[list[int], float, float]]]]:
    """32 x (prompt, 8 x (completion, advantage, sampler log-prob))."""
    random = Random(0)
    groups = []
    for number in range(32):
        prompt = [random.randrange(VOCABULARY) for _ in range(random.randint(16, 20))]
        members = []
        for _ in range(8):
            completion = [random.randrange(VOCABULARY) for _ in range(random.randint(10, 40))]
            advantage = 0.0 if number % 3 == 0 else random.choice([-1.0, 1.0])
            members.append((completion, advantage, -4.6))
        groups.append((prompt, members))
    return groups


def hugging_face_step() -> Callable[[], float]:
    """The step as a function that returns the gradient norm."""
    model = story_shaped_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    rows = [
        (prompt, completion, advantage) for prompt, members in make_groups() for completion, advantage, _ in members
    ]
    width = max(len(prompt) + len(completion) for prompt, completion, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention, trained = torch.zeros_like(ids), torch.zeros(len(rows), width - 1)
    for row, (prompt, completion, _) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        attention[row, :end] = 1
        trained[row, len(prompt) - 1 : end - 1] = 1
    advantages = torch.tensor([advantage for _, _, advantage in rows])[:, None]

    def step() -> float:
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        ratio = (logprobs - logprobs.detach()).exp()
        losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
        loss = ((losses * trained).sum(1) / trained.sum(1)).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)

    return step


def shoal_step(mixed_precision: str) -> Callable[[], float]:
    """The same by the learner, packing and metrics included."""
    cfg = ShoalConfig()
    cfg.optimizer.lr, cfg.optimizer.max_grad_norm, cfg.runtime.mixed_precision = LR, MAX_NORM, mixed_precision
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    prepare_process(cfg.runtime)
    model = story_shaped_model()
    model.set_attn_implementation(runtime.attention)
    use_mixed_linears(model, runtime)
    use_rotary_tables(model, runtime)
    use_lean_norms(model, runtime)
    use_tree_attention(model, runtime)
    learner = LocalLearner(Policy(model.eval(), describe(model.config, None, ()), lora=False), cfg, runtime, 1000)
    sequences = []
    for group, (prompt, members) in enumerate(make_groups()):
        for completion, advantage, logprob in members:
            sequences.append(
                TrainSequence(
                    completion=len(sequences),
                    group=group,
                    ids=np.array(prompt + completion),
                    context=len(prompt),
                    mask=np.ones(len(completion), dtype=np.bool_),
                    sampler_logprobs=np.full(len(completion), logprob, dtype=np.float32),
                    advantages=np.full(len(completion), advantage),
                    completion_tokens=len(completion),
                )
            )
    tokens = sum(len(sequence.mask) for sequence in sequences)
    batch = Batch(sequences, len(sequences), tokens, temperature=1.0, max_new_tokens=40)
    return lambda: learner.train(batch)["train/grad_norm"]


def serve(variant: str) -> None:
    """Runs one step for every line that comes in; answers with seconds and gradient norm."""
    torch.set_num_threads(1)
    if variant.startswith("hf"):
        if variant == "hf_malloc":
            tune_malloc()
        step = hugging_face_step()
    else:
        step = shoal_step("none" if variant == "shoal_float32" else "auto")
    for _ in sys.stdin:
        started = perf_counter()
        norm = step()
        print(json.dumps([perf_counter() - started, norm]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--variant", choices=VARIANTS, help="run as the worker of one variant")
    arguments = parser.parse_args()
    if arguments.variant:
        serve(arguments.variant)
        return
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--variant", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in VARIANTS
    }
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    first_norms = {}
    for number in range(arguments.rounds + 3):
        for name, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            taken, norm = json.loads(worker.stdout.readline())
            first_norms.setdefault(name, norm)
            if number >= 3:
                seconds[name].append(taken)
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    print("variant          fastest    median   gradient norm of the first step")
    for name, what in VARIANTS.items():
        print(
            f"{name:14} {min(seconds[name]) * 1e3:7.1f} ms {median(seconds[name]) * 1e3:7.1f} ms"
            f"  {first_norms[name]:.5f}  {what}"
        )
    for name in ("hf", "hf_malloc"):
        fastest = min(seconds[name]) / min(seconds["shoal"])
        middle = median(a / b for a, b in zip(seconds[name], seconds["shoal"], strict=True))
        print(f"{name} / shoal: {fastest:.2f} by the fastest, {middle:.2f} by the median of paired ratios")


if __name__ == "__main__":
    main()
