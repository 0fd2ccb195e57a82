"""The command line with the real trainer on tiny models, and what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_runs import SMALL, Configure, rows, trained_rows
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from shoal import api as training_run
from shoal import train
from shoal.cli.command import main
from shoal.tasks.warm_start import Recipe, architecture
from shoal.training.state import Run
from shoal.types import Segment

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<quick>{% endif %}"
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_problems: None) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="module")
def maths_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of two layers that reads and writes characters, with a chat template."""
    characters = Tokenizer(WordLevel({chr(code): code for code in range(128)}, unk_token="\x00"))
    characters.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, unk_token="\x00", pad_token="\x02", eos_token="\x03", chat_template=TEMPLATE
    )
    config = architecture(Recipe(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=64), tokenizer)
    config.max_position_embeddings = 1024
    folder = tmp_path_factory.mktemp("maths_model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def maths_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("maths") / "train.jsonl"
    made = [
        {"question": f"Tom has {n} hens and buys {n + 1}. How many now?", "answer": f"{n}+{n + 1}\n#### {2 * n + 1}"}
        for n in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def changed(before: Path, after: Path) -> bool:
    old, new = weights_of(before), weights_of(after)
    assert old.keys() == new.keys()
    return all(bool((old[name] != new[name]).any()) for name in old if "norm" not in name)


def words(*more: str) -> list[str]:
    return ["train", *SMALL, "run.name=one", *more]


def test_a_smoke_test_of_the_story_task_changes_weights_and_says_that_advantages_are_made_up(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*words("run.preflight=true"), "--smoke-test", f"model={tiny_model}"]) == 0
    said = capsys.readouterr().err
    assert "step 2: 2 groups have equal rewards and were trained on made-up advantages" in said.replace("\n", " ")
    assert changed(tiny_model, Path("outputs/one/model"))
    found = trained_rows(Path("outputs/one"))
    assert [row["step"] for row in found] == [1, 2]
    assert all(row["train/grad_norm"] > 0 and row["reward/mean"] == 0 for row in found)


def test_a_smoke_test_of_gsm8k_trains_a_chat_model_on_a_local_file(
    maths_model: Path, maths_file: Path, capsys: pytest.CaptureFixture[str]
):
    overrides = [f"model={maths_model}", f"data.path={maths_file}", "data.max_prompt_tokens=600", "data.subset=null"]
    small = ["run.name=one", "optimizer.lr=1e-3", "runtime.threads=1", "run.group_size=2"]
    assert main(["train", "--config-name", "gsm8k", "--smoke-test", *overrides, *small]) == 0
    assert "made-up advantages" in capsys.readouterr().err
    run = Path("outputs/one")
    assert changed(maths_model, run / "model")
    sample = json.loads((run / "samples/step_1.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].startswith("<system>You solve grade-school maths problems.")
    assert "<user>Tom has " in sample["prompt"] and sample["prompt"].endswith("<assistant><quick>")
    assert int(sample["ground_truth"]) % 2 == 1 and sample["source"] == "gsm8k"
    assert AutoTokenizer.from_pretrained(run / "model").chat_template == TEMPLATE


def test_eval_of_the_saved_model_prints_the_accuracy_that_the_run_ended_with(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    reward = "reward.verifiers.starts_with_a_digit=1"
    assert main(words("run.steps=4", f"model={tiny_model}", reward)) == 0
    summary = json.loads(Path("outputs/one/summary.json").read_text())
    capsys.readouterr()
    files = sorted(Path().rglob("*"))
    assert main(["eval", "model=outputs/one/model"]) == 0
    lines = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert lines["accuracy"] == f"{summary['accuracy_after']:.4f}"
    counts = {"accuracy_stderr", "prompts", "completions"}
    assert set(lines) == {"accuracy", "length", "missing", "reward", "pass@1"} | counts
    assert sorted(Path().rglob("*")) == files


def test_a_sweep_of_two_runs_ends_with_their_numbers_in_a_table(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    reward = "reward.verifiers.starts_with_a_digit=1"
    sweep = ["--multirun", "run.steps=2", "algorithm=grpo,dapo", f"model={tiny_model}", reward]
    assert main(words(*sweep)) == 0
    head, *table = capsys.readouterr().out.splitlines()[-3:]
    assert head.split()[0] == "run" and len(table) == 2
    for number, (line, algorithm) in enumerate(zip(table, ("grpo", "dapo"), strict=True)):
        folder = Path("multirun/one") / str(number)
        summary = json.loads((folder / "summary.json").read_text())
        assert f"{summary['accuracy_after']:.3f}" in line and "finished" in line and f"algorithm={algorithm}" in line
        assert [row["step"] for row in trained_rows(folder)] == [1, 2]


PARTS = ("disk", "memory", "verifiers", "rewards", "log-probs")


def test_check_prints_a_line_for_each_part(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", *SMALL, f"model={tiny_model}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", f"{n}:"] for n in PARTS]
    assert list(Path().iterdir()) == []


def test_a_broken_reward_fails_check_and_stops_train_with_one_line(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    overrides = [*SMALL, "reward.verifiers.always_raises=1", f"model={tiny_model}", "run.preflight=true"]
    assert main(["check", *overrides]) == 1
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("FAILED")] == ["rewards:"]
    assert main(["train", *overrides, "--log-level", "error"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    why = "no score can be had: always_raises: RuntimeError"
    assert line.startswith(f"shoal: error: start-up check: rewards: {why}")


def test_a_reward_of_ones_own_that_is_the_same_for_right_and_wrong_is_warned_of(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", *SMALL, "reward.verifiers.always_zero=1", f"model={tiny_model}"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "rewards:" in line]
    assert not line.startswith("ok") and "a right answer scores 0.0, a wrong one 0.0" in line


def test_a_dry_run_says_what_would_run_and_writes_nothing(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(words("--dry-run", "run.steps=77", f"model={tiny_model}")) == 0
    assert "steps: 77" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


def test_a_run_that_diverges_ends_with_status_1_and_one_line(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    reward = "reward.verifiers.starts_with_a_digit=1"
    broken = ["optimizer.lr=1e30", "optimizer.warmup_steps=0", "run.steps=9", "run.prompts_per_step=6"]
    assert main(words(*broken, f"model={tiny_model}", reward, "--log-level", "error", "monitor.progress=off")) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shoal: error: ")]
    assert len(lines) == 1 and "not finite" in lines[0]
    [failed] = Path("outputs/one").glob("failed_step_*.jsonl")
    assert str(failed) in lines[0] and failed.read_text()


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that end while a test runs, with their parts."""
    runs: list[Run] = []
    conclude = training_run.conclude

    def listen(run: Run, status: str) -> dict[str, Any]:
        runs.append(run)
        return conclude(run, status)

    monkeypatch.setattr(training_run, "conclude", listen)
    return runs


def logprobs_of(model: Any, segments: list[Segment]) -> list[list[float]]:
    """By the plain forward pass of a Hugging Face model, one segment at a time."""
    found = []
    for segment in segments:
        ids = torch.tensor([segment.context_ids + segment.sampled_ids])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(-1, ids[0, 1:, None])[len(segment.context_ids) - 1 :, 0]
        found.append(chosen.tolist())
    return found


def close(mine: list[list[float]], theirs: list[list[float]], allowed: float) -> bool:
    return float(np.abs(np.concatenate(mine) - np.concatenate(theirs)).max()) < allowed


def sampled_last(run: Run) -> list[Segment]:
    """What the evaluation after the last step sampled."""
    assert run.samples is not None
    return [completion.segments[0] for group in run.samples for completion in group.completions]


def test_the_final_model_loads_with_from_pretrained_and_is_the_one_that_was_trained(
    configure: Configure, tiny_model: Path, tmp_path: Path, finished: list[Run]
):
    train(configure("run.steps=4", "optimizer.lr=1e-2"), tmp_path / "run")
    [run] = finished
    segments = sampled_last(run)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    found = logprobs_of(loaded, segments)
    assert close(found, run.parts.learner.logprobs(segments), 1e-4)
    assert close(found, [segment.logprobs for segment in segments], 1e-4)
    assert not close(found, logprobs_of(AutoModelForCausalLM.from_pretrained(tiny_model), segments), 1e-2)


def test_the_final_adapter_loads_with_peft_and_with_eval_and_leaves_the_base_as_it_was(
    configure: Configure, tiny_model: Path, tmp_path: Path, finished: list[Run], capsys: pytest.CaptureFixture[str]
):
    lora = ("model.train=lora", "model.lora.r=4", "model.lora.dropout=0.1", "optimizer.lr=3e-2")
    summary = train(configure("run.steps=6", *lora), tmp_path / "run")
    [run] = finished
    segments, folder = sampled_last(run), tmp_path / "run" / "model"
    assert (folder / "adapter_config.json").is_file() and not (folder / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert not close(logprobs_of(base, segments), run.parts.learner.logprobs(segments), 1e-2)
    found = logprobs_of(PeftModel.from_pretrained(base, folder).eval(), segments)
    assert close(found, run.parts.learner.logprobs(segments), 1e-4)
    assert main(["eval", f"model={folder}"]) == 0
    assert f"accuracy: {summary['accuracy_after']:.4f}" in capsys.readouterr().out
    assert main(["train", "--dry-run", f"model={folder}"]) == 0


@pytest.mark.parametrize("how", ["lora", "full"])
def test_training_goes_on_with_an_adapter_or_with_the_model_that_it_is_merged_into(
    configure: Configure, tmp_path: Path, finished: list[Run], how: str
):
    lora = ("model.train=lora", "model.lora.r=4", "optimizer.lr=3e-2")
    train(configure("run.steps=4", *lora), tmp_path / "first")
    name = f"model.name={tmp_path}/first/model"
    train(configure("run.steps=1", name, f"model.train={how}", "algorithm.kl_coef=0.1"), tmp_path / "second")
    first, second = finished
    segments = sampled_last(first)
    assert second.reference is not None
    for completion in (completion for group in first.samples or [] for completion in group.completions):
        completion.segments[0].ref_logprobs = None
    second.reference.score(first.samples or [])  # the policy as it was when the second run began
    assert close([segment.ref_logprobs or [] for segment in segments], [one.logprobs for one in segments], 1e-4)
    assert (tmp_path / "second" / "model" / "adapter_config.json").is_file() == (how == "lora")


def test_a_run_counted_in_episodes_ends_after_as_many_completions(configure: Configure, tmp_path: Path):
    summary = train(configure("run.episodes=24"), tmp_path / "run")
    assert (summary["steps"], summary["completions"]) == (3, 24)
    assert [row["step"] for row in rows(tmp_path / "run") if "eval/accuracy" in row] == [0, 3]
