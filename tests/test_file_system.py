"""What the file system refuses is one line and status 1 or 2, wherever it happens."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.cli.command import main
from shoal.config import load_config
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.config.overrides import overridden, parse_overrides
from shoal.errors import ConfigError
from shoal.files import file_trouble, only_trainer, write_atomically
from shoal.run_folder import save_config
from shoal.runtime import prepare_process
from shoal.tasks.cache import cached
from shoal.tasks.warm_start import cache_folder, warm_started_model

HOLD = """
import sys
from pathlib import Path
from shoal.files import only_trainer
with only_trainer(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_trouble_is_found_in_what_led_to_an_error_and_only_there():
    full = OSError(errno.ENOSPC, "No space left on device", "outputs/one/state.pt")
    assert file_trouble(full) == "outputs/one/state.pt: No space left on device"
    wrapped = RuntimeError("unexpected pos")
    wrapped.__context__ = OSError(errno.EROFS, "Read-only file system")
    assert file_trouble(wrapped) == "Read-only file system"
    assert file_trouble(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
    assert file_trouble(RuntimeError("out of memory")) is None


@pytest.mark.parametrize("root", ["/dev/null/outputs", "/proc/outputs", "file/outputs"])
def test_an_output_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: str
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a folder")
    assert main(["train", f"run.root={root}", "run.name=one"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("shoal: error: ") and error.count("\n") == 1 and root.split("/")[1] in error


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_atomically(tmp_path / "a.json", "old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_second_trainer_in_a_folder_is_refused_and_the_folder_is_free_when_the_first_has_ended(tmp_path: Path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    try:
        with pytest.raises(ConfigError, match=rf"another trainer \(process {first.pid}\)"), only_trainer(tmp_path):
            pass
    finally:
        first.kill()
        first.wait()
    with only_trainer(tmp_path):
        pass


def test_resuming_a_run_that_runs_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_config(load_config("story", ["model.name=/no/such/model"]), [], tmp_path, preset="story")
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    try:
        assert main(["train", f"resume={tmp_path}"]) == 2
    finally:
        first.kill()
        first.wait()
    assert "another trainer" in capsys.readouterr().err
    assert (tmp_path / ".hydra" / "config.yaml").is_file()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("SHOAL_CACHE", "/dev/null/cache")
    with pytest.raises(ConfigError, match=r"/dev/null/cache.*set SHOAL_CACHE"):
        warm_started_model()
    assert cached("key", 1, lambda: [[1, 2]]) == [[1, 2]]
    assert "cannot be kept" in caplog.text


def test_a_process_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SHOAL_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="set SHOAL_CACHE"):
        cache_folder()


def test_more_threads_than_can_be_started_are_refused_and_not_tried():
    with pytest.raises(ConfigError, match=r"runtime\.threads=100000: at most"):
        prepare_process(RuntimeConfig(threads=100_000))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("run.name=loc-é", "run.name", "loc-é"),
        ("run.name='loc-é'", "run.name", "loc-é"),
        ('run.name="loc é"', "run.name", "loc é"),
        ("run.root=données/läufe", "run.root", "données/läufe"),
        ("data.path=数据.jsonl", "data.path", "数据.jsonl"),
    ],
)
def test_letters_beyond_ascii_need_no_quotes(text: str, key: str, value: str):
    assert overridden([text])[key] == value


def test_an_override_that_is_no_utf_8_is_told_in_one_line():
    with pytest.raises(ConfigError, match="is no UTF-8 text"):
        parse_overrides(["run.name=loc-\udce9"])
    with pytest.raises(ConfigError, match="is no UTF-8 text"):
        parse_overrides(["run.name='loc-\udce9'"])


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_plain_locale_is_no_traceback(tmp_path: Path, locale: dict[str, str]):
    command = [sys.executable, "-m", "shoal.cli", "train", "run.root=/dev/null/é", "run.name=loc-é"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **locale}, capture_output=True, timeout=120, check=False
    )
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith(b"shoal: error: ")
