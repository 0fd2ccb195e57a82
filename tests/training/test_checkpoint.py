import errno
import pickle
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
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


def test_a_part_that_fails_to_write_its_files_leaves_no_half_and_every_earlier_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(1, {"step": 1}, lambda folder: (folder / "learner.pt").write_bytes(b"whole"))

    def half(folder: Path) -> None:
        (folder / "learner.pt").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TrainingError, match="checkpoint of step 2 cannot be written"):
        store.save(2, {"step": 2}, half)
    assert store.steps() == [1] and (store.at(1) / "learner.pt").read_bytes() == b"whole"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path, keep_last=1).load() is None


def test_an_unreadable_checkpoint_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(3, {"step": 3})
    (tmp_path / "checkpoints" / "step_3" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"step_3/state.pt cannot be read .*remove its folder"):
        store.load()


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), pickle.dumps(Path("x")), b"", b"PK\x03\x04", b"\x80"])
def test_another_programs_file_is_told_as_one(tmp_path: Path, content: bytes) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(3, {"step": 3})
    (tmp_path / "checkpoints" / "step_3" / "state.pt").write_bytes(content)
    try:
        store.load()
    except TrainingError as error:
        assert "remove its folder" in str(error) and "\n" not in str(error)


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_costs_no_earlier_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(1, {"weights": torch.ones(4)})
    with file_size_limit(2**16), pytest.raises(TrainingError) as caught:
        store.save(2, {"weights": torch.ones(2**16)})
    assert str(caught.value) == (
        f"the checkpoint of step 2 cannot be written in {tmp_path}/checkpoints: File too large; "
        "the newest whole one is of step 1"
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1"]
    assert store.load()[1]["weights"].tolist() == [1.0] * 4


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The system refuses to write on at this many bytes of a file: what a full disk does, for every library."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_model_that_cannot_be_written_leaves_the_old_one_and_no_half(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    with file_size_limit(2**10), pytest.raises(OSError, match="File too large"):
        replace_folder(tmp_path / "model", lambda folder: (folder / "weights").write_bytes(bytes(2**12)))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


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
