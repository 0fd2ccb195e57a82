import json
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.errors import DataError
from shoal.files import sync_folder, write_atomically
from shoal.monitor.rows import keep_first_rows, read_rows, to_line, without_timing


def test_a_half_written_last_line_is_not_a_row(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "rew')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


def test_a_last_line_without_its_newline_is_not_a_row_even_where_it_parses(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_rows(path) == [{"step": 1}]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not JSON"):
        read_rows(path)


@pytest.mark.parametrize("line", [b"null", b"[1]", b"{}", b'{"step": "one"}', b"\xff\xfe"])
def test_a_line_that_is_no_row_is_told(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl(, line 2: no object with a step| is damaged)"):
        read_rows(path)


def test_a_missing_file_has_no_rows(tmp_path: Path):
    assert read_rows(tmp_path) == []
    assert keep_first_rows(tmp_path / "metrics.jsonl", 3) == 0


def test_cutting_keeps_the_first_rows_byte_for_byte_and_counts_the_rest(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n{"step": 2}\n{"step": 3}\n{"step"')
    assert keep_first_rows(path, 2) == 2
    assert path.read_text() == '{"step":1}\n{"step": 2}\n'
    assert keep_first_rows(path, 2) == 0
    assert keep_first_rows(path, 5) == 0


def test_values_that_json_lacks_become_null():
    line = to_line({"step": 1, "a": float("nan"), "b": float("inf"), "c": 0.1})
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 1,
        "a": None,
        "b": None,
        "c": 0.1,
    }


def test_floats_survive_the_file_bit_for_bit():
    value = 0.1 + 0.2
    assert json.loads(to_line({"x": value}))["x"] == value


def test_times_are_told_from_values_by_the_beginning_or_the_end_of_their_names():
    values = {"step": 1, "reward/mean": 0.5, "train/tokens": 7, "count/sampled_tokens": 7, "length/mean": 2}
    times = ["seconds/step", "time/x", "tokens_per_second/step", "memory/rss_peak_gib", "rewards/gsm8k/seconds"]
    times += ["engine/tokens_per_second", "train/forwarded_tokens_per_second"]
    assert without_timing({**dict.fromkeys(times, 1), **values}) == values


def test_a_write_that_dies_half_way_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    # The child dies inside the write: after the bytes are in the file beside, before the rename.
    code = (
        "import os, sys; from pathlib import Path; from shoal import files\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "files.write_atomically(Path(sys.argv[1]), 'new')"
    )
    child = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert child.returncode == 9
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2, "the half-written file was not beside the old one"


def test_a_reader_that_has_the_old_file_open_never_sees_a_mixture(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    with path.open() as reader:
        write_atomically(path, "new and longer")
        assert reader.read() == "old"
    assert path.read_text() == "new and longer"


@pytest.mark.parametrize("durable", [True, False])
def test_writing_makes_the_folder_and_leaves_nothing_beside(tmp_path: Path, durable: bool):
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, "grüße", durable=durable)
    write_atomically(path, b"\x00\x01", durable=durable)
    assert path.read_bytes() == b"\x00\x01"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_syncing_a_folder_leaves_its_files_as_they_are(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    sync_folder(tmp_path)
    assert (tmp_path / "file").read_text() == "x"
