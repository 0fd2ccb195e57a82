"""Folders that take another one's place: a reader finds one of them whole, whenever the writer dies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from shoal import files
from shoal.files import replace_folder


class Killed(BaseException):
    """Stands for the end of the process."""


def write(text: str) -> Any:
    return lambda path: (path / "file").write_text(text)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file system that cannot exchange folders may leave the old one under another name until the next call."""
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    elif not files._exchange(*made(tmp_path / "trial")):
        pytest.skip("this file system cannot exchange two folders")
    for moment in range(20):
        folder = tmp_path / f"moment_{moment}" / "best"
        replace_folder(folder, write("old"))
        calls = 0

        def dying(plain: Any, moment: int = moment) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == moment:
                    raise Killed
                return plain(*arguments, **options)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
            patched.setattr(Path, "rename", dying(Path.rename))
            patched.setattr(files, "_exchange", dying(files._exchange))
            patched.setattr(files, "_sync", dying(files._sync))
            try:
                replace_folder(folder, write("new"))
            except Killed:
                if not exchanges and not folder.exists():
                    assert (folder.parent / ".old_best" / "file").read_text() == "old"
                    # What happens first when the folder is written again.
                    with pytest.raises(Killed):
                        replace_folder(folder, killed)
                assert (folder / "file").read_text() in ("old", "new")
            else:
                assert moment == 0 or calls < moment
                assert (folder / "file").read_text() == "new"
                assert [path.name for path in folder.parent.iterdir()] == ["best"]
    assert calls < 19, "every call of the last round was reached"


def killed(path: Path) -> None:
    raise Killed


def made(folder: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        (folder / name).mkdir(parents=True)
    return folder / "one", folder / "other"
