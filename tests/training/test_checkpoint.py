import random
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.errors import TrainingError
from shoal.files import replace_folder
from shoal.training.checkpoint import CheckpointStore, rng_state, set_rng_state


def test_the_newest_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 10):
        store.save(step, {"step": step, "weights": torch.full((3,), float(step))})
    assert store.steps() == [2, 10]
    step, state = store.load()
    assert step == 10
    assert state["weights"].tolist() == [10.0] * 3


def test_a_half_written_checkpoint_is_absent_and_swept_away(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(1, {"step": 1})
    half = tmp_path / "checkpoints" / ".writing_step_2"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    assert store.steps() == [1]
    assert store.load()[0] == 1
    assert not half.exists()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path, keep_last=1).load() is None


def test_an_unreadable_checkpoint_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(3, {"step": 3})
    (tmp_path / "checkpoints" / "step_3" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"step_3/state.pt cannot be read .*remove its folder"):
        store.load()


def test_every_random_generator_goes_on_where_it_was() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    draw()
    state = rng_state()
    expected = draw()
    random.seed(7), np.random.seed(8), torch.manual_seed(9)
    set_rng_state(state)
    assert draw() == expected


def test_a_random_state_survives_the_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    state = rng_state()
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    store.save(0, {"rng": state})
    set_rng_state(store.load()[1]["rng"])
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    replace_folder(folder, lambda path: (path / "a").write_text("old"))

    def fail(path: Path) -> None:
        (path / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(folder, fail)
    assert (folder / "a").read_text() == "old"
    replace_folder(folder, lambda path: (path / "b").write_text("new"))
    assert [file.name for file in folder.iterdir()] == ["b"]
