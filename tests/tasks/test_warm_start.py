import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from shoal.rewards.base import Submission
from shoal.rewards.verifiers.strings import exact_answer
from shoal.tasks.story import make_problem
from shoal.tasks.warm_start import Recipe, cache_folder, warm_started_model

SHORT = Recipe(steps=3, batch=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_model_loads_as_any_other_with_its_tokenizer_and_its_end() -> None:
    folder = warm_started_model(SHORT)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert generation.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)
    text = "Dee has 16 cats drops 3 eats 3 How many?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 0.3e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.5e6


def test_it_is_made_once_and_then_found(cache: Path) -> None:
    steps: list[tuple[int, int]] = []
    first = warm_started_model(SHORT, lambda step, total, loss: steps.append((step, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert warm_started_model(SHORT, lambda step, total, loss: steps.append((step, total))) == first
    assert len(steps) == 3
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_another_recipe_is_another_model() -> None:
    folders = {warm_started_model(recipe) for recipe in (SHORT, Recipe(steps=4, batch=4), Recipe(3, batch=4, steps=3))}
    assert len(folders) == 3


@pytest.mark.parametrize(("name", "value"), [("LARGEST_CHANGE", 5), ("KNOWN_VERBS", ("gets", "eats"))])
def test_another_task_is_another_model(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = SHORT.digest
    assert Recipe(steps=3, batch=4).digest == digest
    monkeypatch.setattr(f"shoal.tasks.story.{name}", value)
    assert SHORT.digest != digest


def test_the_same_recipe_gives_the_same_weights_and_leaves_the_random_state_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states = []
    for name in ("one", "two"):
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / name))
        torch.manual_seed(len(states))
        before = torch.get_rng_state()
        states.append(AutoModelForCausalLM.from_pretrained(warm_started_model(SHORT)).state_dict())
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_interrupted_making_leaves_nothing_behind(cache: Path) -> None:
    def stop(step: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_started_model(SHORT, stop)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_two_processes_at_once_end_with_one_whole_model(cache: Path) -> None:
    code = (
        "from shoal.tasks.warm_start import Recipe, warm_started_model\n"
        "print(warm_started_model(Recipe(steps=3, batch=4)))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    # The last line: packages that are imported on the way may print lines of their own.
    folders = {process.communicate(timeout=120)[0].splitlines()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert folders == {str(warm_started_model(SHORT))}
    assert len(list(cache.iterdir())) == 1
    assert json.loads((Path(folders.pop()) / "config.json").read_text())["num_hidden_layers"] == 2


def test_a_folder_that_another_process_made_first_is_taken(cache: Path) -> None:
    final = cache_folder() / f"story_{SHORT.digest}"

    def other_process_is_faster(step: int, total: int, loss: float) -> None:
        if step == total:
            final.mkdir(parents=True)
            (final / "theirs").touch()

    assert warm_started_model(SHORT, other_process_is_faster) == final
    assert [path.name for path in final.iterdir()] == ["theirs"]
    assert [path.name for path in cache.iterdir()] == [final.name]


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "shoal"


@pytest.mark.slow
def test_the_warm_start_teaches_format_and_arithmetic_and_leaves_verbs_to_be_learnt() -> None:
    folder = warm_started_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    problems = [make_problem(Random(f"test/{index}"), held_out=True) for index in range(400)]
    inputs = tokenizer([problem.question for problem in problems], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    outputs = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=40,
        do_sample=True,
        top_k=0,
    )
    texts = tokenizer.decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [
        exact_answer(Submission(text, str(problem.results()[-1])))
        for text, problem in zip(texts, problems, strict=True)
    ]
    assert sum("</think><answer>" in text and text.endswith("</answer>") for text in texts) > 390
    # With perfect arithmetic and coin flips for six verbs of eight: mean of .625 ** changes = .36. Some signs follow
    # from the results' bounds, which adds a little. A standard deviation of a sampled accuracy is .025.
    assert 0.25 < sum(right) / len(right) < 0.52
