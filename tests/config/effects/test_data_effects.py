"""Keys of `data`."""

from __future__ import annotations

import datasets
import pytest

from effects.made import write_jsonl
from effects.registry import effect
from shoal.learners.model import load_policy
from shoal.runtime import resolve_runtime
from shoal.tasks.base import Task
from shoal.tasks.dataset import build_task


def row(number: int) -> dict[str, str]:
    return {"question": f"Dee has {number} cats How many?", "answer": f"{number}-0={number} #### {number}"}


@pytest.fixture
def task_of(settings):
    """The task under changed keys."""

    def build(changes: dict[str, object]) -> Task:
        cfg = settings(changes)
        return build_task(cfg, load_policy(cfg.model, resolve_runtime(cfg.runtime, cfg.model)).tokenizer)

    return build


def answers(task: Task) -> tuple[set[str], set[str]]:
    """Right answers of the training and the evaluation prompts."""
    return {prompt.ground_truth for prompt in task.train}, {prompt.ground_truth for prompt in task.evaluation}


@pytest.fixture
def gsm8k(tmp_path):
    """Keys of a data set in two splits, as the Hub has them: 1 and 2 to train on, 3 to test on, 4 to validate on."""
    splits = {"train": [row(1), row(2)], "test": [row(3)], "validation": [row(4)]}
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    made.save_to_disk(tmp_path / "saved")
    return {"data.task": "gsm8k", "data.path": str(tmp_path / "saved")}


@effect("data.task")
def test_the_task_says_what_the_rows_are(settings, task_of, gsm8k):
    story, maths = task_of({}), task_of(gsm8k)
    assert {prompt.source for prompt in story.train} == {"story"}
    assert {prompt.source for prompt in maths.train} == {"gsm8k"}
    assert (story.verifiers, maths.verifiers) == ({"exact_answer": 1.0}, {"gsm8k": 1.0})


@effect("data.path", "data.eval_path")
def test_paths_say_where_the_rows_are(settings, task_of, tmp_path):
    one, two = (write_jsonl(tmp_path / f"{number}.jsonl", [row(number)]) for number in (1, 2))
    layout = {"data.task": "gsm8k"}
    assert answers(task_of({**layout, "data.path": one})) == ({"1"}, {"1"})
    assert answers(task_of({**layout, "data.path": two})) == ({"2"}, {"2"})
    assert answers(task_of({**layout, "data.path": one, "data.eval_path": two})) == ({"1"}, {"2"})


@effect("data.columns")
def test_columns_may_have_other_names(settings, task_of, tmp_path):
    rows = [{"question": f"{number}?", "answer": f"#### {number}", "other": "#### 7"} for number in (1, 2)]
    path = {"data.task": "gsm8k", "data.path": write_jsonl(tmp_path / "rows.jsonl", rows)}
    assert answers(task_of(path))[0] == {"1", "2"}
    assert answers(task_of({**path, "data.columns": {"answer": "other"}}))[0] == {"7"}


@effect("data.split", "data.eval_split")
def test_splits_are_chosen_by_name(settings, task_of, gsm8k):
    assert answers(task_of(gsm8k)) == ({"1", "2"}, {"3"})
    assert answers(task_of({**gsm8k, "data.split": "validation"})) == ({"4"}, {"3"})
    assert answers(task_of({**gsm8k, "data.eval_split": "validation"})) == ({"1", "2"}, {"4"})


@effect("data.subset")
def test_the_subset_is_a_configuration_of_the_data_set(settings, task_of, tmp_path, monkeypatch):
    # A folder with a data card is read as the data set of that card on the Hub would be.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "carded"
    folder.mkdir()
    card = ["---", "configs:"]
    for name, number in (("main", 1), ("socratic", 2)):
        card += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "test"):
            write_jsonl(folder / f"{name}_{split}.jsonl", [row(number)])
            card += [f"  - split: {split}", f"    path: {name}_{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    layout = {"data.task": "gsm8k", "data.path": str(folder)}
    assert answers(task_of({**layout, "data.subset": "main"})) == ({"1"}, {"1"})
    assert answers(task_of({**layout, "data.subset": "socratic"})) == ({"2"}, {"2"})


@effect("data.max_prompt_tokens")
def test_longer_prompts_are_left_out_and_counted(settings, task_of):
    every = task_of({})
    assert len(every.train) == 12 and not every.dropped
    lengths = sorted(len(prompt.token_ids) for prompt in every.train)
    limit = lengths[5]
    short = task_of({"data.max_prompt_tokens": limit})
    assert max(len(prompt.token_ids) for prompt in short.train) == limit
    assert short.dropped[f"story, training: longer than {limit} tokens"] == 12 - len(short.train) > 0


@effect("data.system_prompt")
def test_the_system_prompt_stands_before_every_question(settings, task_of):
    plain, prompted = task_of({}), task_of({"data.system_prompt": "Sam?"})
    for before, after in zip(plain.train, prompted.train, strict=True):
        assert after.messages == [{"role": "system", "content": "Sam?"}, *before.messages]
        # "Sam", "?" and the empty line between the two, which the tokenizer does not know.
        assert after.token_ids[-len(before.token_ids) :] == before.token_ids
        assert len(after.token_ids) > len(before.token_ids)


@effect("data.revision")
def test_the_revision_of_a_hub_data_set_is_asked_for(settings, task_of, monkeypatch):
    # No Hub here: what stands in its place has a data set with another row in each revision.
    def hub(path: str, subset: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        return datasets.Dataset.from_list([row({None: 1, "v2": 2}[revision])])

    monkeypatch.setattr(datasets, "load_dataset", hub)
    layout = {"data.task": "gsm8k", "data.path": "someone/questions"}
    assert answers(task_of(layout)) == ({"1"}, {"1"})
    assert answers(task_of({**layout, "data.revision": "v2"})) == ({"2"}, {"2"})


@effect("data.mix")
def test_a_mix_replaces_the_one_source(settings, task_of, gsm8k):
    mixed = task_of({"data.mix": {"verbs": {"amount": 6}, "sums": {"task": "gsm8k", "path": gsm8k["data.path"]}}})
    assert [prompt.source for prompt in mixed.train].count("verbs") == 6
    assert {prompt.source for prompt in mixed.evaluation} == {"verbs", "sums"}
    assert {prompt.source for prompt in task_of({}).train} == {"story"}


@effect("data.verifiers")
def test_verifiers_of_the_data_replace_those_that_rows_name(settings, task_of):
    assert {tuple(prompt.verifiers) for prompt in task_of({}).train} == {()}
    replaced = task_of({"data.verifiers": ["gsm8k", "exact_answer"]})
    assert {tuple(prompt.verifiers) for prompt in replaced.train} == {("gsm8k", "exact_answer")}


@effect("data.instructions")
def test_instructions_follow_every_question(settings, task_of):
    plain, told = task_of({}), task_of({"data.instructions": "Sam?"})
    for before, after in zip(plain.train, told.train, strict=True):
        assert after.messages[-1]["content"] == f"{before.messages[-1]['content']}\n\nSam?"
        assert after.token_ids[: len(before.token_ids)] == before.token_ids
        assert len(after.token_ids) > len(before.token_ids)


@effect("data.cache")
def test_tokenised_data_is_kept_unless_it_shall_not_be(settings, task_of, gsm8k, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    task_of({**gsm8k, "data.cache": False})
    assert not (tmp_path / "cache").exists()
    task_of(gsm8k)
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2  # training and evaluation


@effect("data.shuffle")
def test_prompts_are_drawn_in_a_random_order_or_in_the_datas_own(settings, open_run):
    def drawn(changes: dict[str, bool]) -> list[str]:
        source = open_run(settings({"run.prompts_per_step": 12, **changes})).source
        return [group.id for group in source.next_groups(1)]

    in_order = [f"story/train/{number}" for number in range(12)]
    assert drawn({"data.shuffle": False}) == in_order
    assert drawn({}) != in_order
    assert sorted(drawn({})) == sorted(in_order)
