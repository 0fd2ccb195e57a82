"""Seconds per GRPO step: Shoal against TRL's GRPOTrainer on the default task, interleaved step by step.

    python benchmarks/step_vs_trl.py --steps 30 --seeds 0 1 2

Each contender is a process of its own with one thread, so that malloc settings stay apart; they take turns step by
step, and only one runs at a time. The same warm-started model, prompts, group size, learning rate, schedule, betas,
clipping and loss normalisation. Contenders: `shoal`; `trl`, as it comes; `trl-malloc`, with the malloc settings that
Shoal makes. Printed for each: the dtype of its parameters and matrix products, the median seconds of a step, split into
generation and the rest, and the held-out accuracy after the last step; then the ratios, the medians over turns of
theirs / Shoal's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

PROMPTS, GROUP, NEW_TOKENS, LR, WARMUP = 32, 8, 40, 3e-4, 5
CONTENDERS = ("shoal", "trl", "trl-malloc")


class Turns:
    """A contender's end of the line: waits for its turn, reports what the step took."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints goes to stderr, not into the line

    def wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit("the other end is gone")

    def report(self, **values: Any) -> None:
        print(json.dumps(values), file=self.out, flush=True)


def run_shoal(turns: Turns, seed: int, steps: int) -> None:
    """Shoal's own loop, with a source that waits for its turn."""
    from shoal import load_config  # noqa: PLC0415 - a contender imports its own libraries only
    from shoal.build import build_run  # noqa: PLC0415
    from shoal.training.loop import train_loop  # noqa: PLC0415

    overrides = [
        f"run.seed={seed}",
        f"run.steps={steps}",
        "runtime.threads=1",
        "monitor.progress=off",
        "monitor.curve=false",
        "evaluation.at_start=false",
        "evaluation.at_end=false",
        "checkpoint.every=0",
        "checkpoint.save_final=false",
        "monitor.tensorboard=false",
        "monitor.samples_every=0",
        "evaluation.prompts=512",
        f"optimizer.lr={LR}",
        f"optimizer.warmup_steps={WARMUP}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(load_config("story", overrides), Path(folder), lambda: False, {})
        runtime = run.parts.runtime
        turns.report(dtype=f"parameters {runtime.param_dtype}, products {runtime.compute_dtype or runtime.param_dtype}")
        original, started, generated = run.source.next_groups, 0.0, 0.0

        def gated(step: int) -> Any:
            nonlocal started, generated
            if step > 1:
                turns.report(total=perf_counter() - started, generation=generated)
            turns.wait()
            started = perf_counter()
            groups = original(step)
            generated = perf_counter() - started
            return groups

        run.source.next_groups = gated  # type: ignore[method-assign]
        train_loop(run)
        turns.report(total=perf_counter() - started, generation=generated)
        turns.wait()
        turns.report(accuracy=run.evaluator.run()[0]["accuracy"])
        run.close("stopped")


def run_trl(turns: Turns, seed: int, steps: int, tuned: bool) -> None:
    """TRL's trainer, with a callback that waits for its turn."""
    import torch  # noqa: PLC0415 - a contender imports its own libraries only
    from datasets import Dataset  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: PLC0415
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    from shoal import load_config  # noqa: PLC0415
    from shoal.runtime import tune_malloc  # noqa: PLC0415
    from shoal.tasks.dataset import build_task  # noqa: PLC0415
    from shoal.tasks.stream import PromptStream  # noqa: PLC0415
    from shoal.tasks.warm_start import warm_started_model  # noqa: PLC0415

    torch.set_num_threads(1)
    if tuned:
        tune_malloc()
    folder = warm_started_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    task = build_task(load_config("story"), tokenizer)
    prompts = [prompt for prompt, _ in PromptStream(task.train, seed=seed, shuffle=True).next(PROMPTS * steps)]
    rows = [{"prompt": tokenizer.decode(p.token_ids), "truth": p.ground_truth} for p in prompts]
    started = generated = 0.0

    def exact(completions: list[str], truth: list[Any], **_: Any) -> list[float]:
        return [
            float(f"<answer>{gold}</answer>" in text.replace(" ", ""))
            for text, gold in zip(completions, truth, strict=True)
        ]

    class Gate(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            nonlocal started
            turns.wait()
            started = perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.report(total=perf_counter() - started, generation=generated)

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            nonlocal generated
            begin = perf_counter()
            result = super()._generate_and_score_completions(inputs)
            generated = perf_counter() - begin
            return result

    with tempfile.TemporaryDirectory() as output:
        arguments = GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            seed=seed,
            max_steps=steps,
            learning_rate=LR,
            warmup_steps=WARMUP,
            lr_scheduler_type="constant_with_warmup",
            adam_beta1=0.9,
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=1.0,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            logging_steps=steps,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        trainer = Timed(
            model=model,
            reward_funcs=exact,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Gate()],
        )
        turns.report(dtype=f"parameters {model.dtype}, products {model.dtype}")
        trainer.train()
        turns.wait()
        turns.report(accuracy=held_out_accuracy(model, tokenizer, seed))


def held_out_accuracy(model: Any, tokenizer: Any, seed: int) -> float:
    """Sampled accuracy on the same held-out prompts, by the same engine and scorer as Shoal's."""
    from shoal import load_config  # noqa: PLC0415
    from shoal.build import build_parts  # noqa: PLC0415
    from shoal.training.evaluate import Evaluator  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        overrides = [f"run.seed={seed}", "evaluation.prompts=512", f"model.name={folder}", "monitor.progress=off"]
        cfg = load_config("story", overrides)
        parts = build_parts(cfg, {})
        parts.sync.publish(0)
        return Evaluator(cfg, parts).run()[0]["accuracy"]


class Contender:
    """This end of the line to one contender's process."""

    def __init__(self, name: str, seed: int, steps: int) -> None:
        self.name = name
        arguments = [sys.executable, __file__, "--worker", name, "--seeds", str(seed), "--steps", str(steps)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.dtype = self.read()["dtype"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read()


def race(seed: int, steps: int) -> dict[str, dict[str, Any]]:
    """One seed: all contenders, step by step in turn."""
    contenders = [Contender(name, seed, steps) for name in CONTENDERS]
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for step in range(steps):
        for contender in contenders:
            taken[contender.name].append(contender.turn())
        print(
            f"seed {seed} step {step + 1}/{steps}", *(f"{n} {t[-1]['total']:.3f}" for n, t in taken.items()), flush=True
        )
    return {c.name: {"dtype": c.dtype, "steps": taken[c.name], **c.turn()} for c in contenders}


def summarise(races: list[dict[str, dict[str, Any]]]) -> Iterator[str]:
    """The table and the ratios. The first three steps of every race are warm-up and not counted."""
    for name in CONTENDERS:
        steps = [step for race in races for step in race[name]["steps"][3:]]
        total, generation = (median(step[key] for step in steps) for key in ("total", "generation"))
        accuracies = [race[name]["accuracy"] for race in races]
        yield (
            f"{name:<11} {total:.3f} s/step (generation {generation:.3f}, training {total - generation:.3f}); accuracy "
            f"{mean(accuracies):.3f} {[round(a, 3) for a in accuracies]}; {races[0][name]['dtype']}"
        )
    for name in CONTENDERS[1:]:
        for part in ("total", "generation"):
            ratios = [
                theirs[part] / ours[part]
                for race in races
                for theirs, ours in zip(race[name]["steps"][3:], race["shoal"]["steps"][3:], strict=True)
            ]
            yield f"{name} / shoal, {part}: {median(ratios):.2f} (median of {len(ratios)} turns)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worker", choices=CONTENDERS)
    arguments = parser.parse_args()
    if arguments.worker == "shoal":
        run_shoal(Turns(), arguments.seeds[0], arguments.steps)
    elif arguments.worker:
        run_trl(Turns(), arguments.seeds[0], arguments.steps, tuned=arguments.worker == "trl-malloc")
    else:
        print(*summarise([race(seed, arguments.steps) for seed in arguments.seeds]), sep="\n")


if __name__ == "__main__":
    main()
