"""Rows of a data set: from the Hub, a local JSONL or Parquet file, or a folder made by `save_to_disk`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

from shoal.errors import DataError
from shoal.hub import look_for_hub

JSON_FILES, FORMATS = (".jsonl", ".json"), (".jsonl", ".json", ".parquet")
MEDIA = re.compile(r"\b(Image|Audio|Video|Pdf)\b")  # features of columns that no verifier reads
NOT_JSON = re.compile(r"'(timestamp|date|time|duration|decimal|binary|large_binary)")
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"


def is_single_file(path: str) -> bool:
    """Whether `path` names a file, which has one split whatever its name."""
    return Path(path).suffix in FORMATS


def read_rows(
    path: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    split: str,
    columns: Sequence[Sequence[str]],
    optional: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The rows of one split, in order, with all their columns but pictures and sounds. A single file has one split.

    Of each entry of `columns` the data must have one column and every row a value. `names` gives the data's own name of
    one of these, or of one in `optional`, where it is another (data.columns).

    Raises:
        DataError: there is no such file, data set, split or column, a value is missing, or there are no rows.
    """
    names = names or {}
    wanted = [name for alternatives in columns for name in alternatives] + list(optional)
    for name in names:
        if name not in wanted:
            raise DataError(f"data.columns.{name}: the layout reads no such column; it reads {', '.join(wanted)}")
    # Where one of several alternatives is named, the others are not looked for.
    columns = [
        [names[name] for name in alternatives if name in names] or list(alternatives) for alternatives in columns
    ]
    local = Path(path).expanduser()
    if local.suffix in JSON_FILES:
        rows = _read_json(path, local)
        there = list(dict.fromkeys(name for row in rows for name in row))
        _check_columns(path, columns, there, names)
    else:
        dataset = _open(path, local, subset, revision, split)
        _check_columns(path, columns, dataset.column_names, names)
        kinds = {name: repr(dataset.features[name]) for name in dataset.column_names}
        rows = dataset.select_columns([name for name in kinds if not MEDIA.search(kinds[name])]).to_list()
        for name in kinds:
            if NOT_JSON.search(kinds[name]):
                rows = [{**row, name: str(row[name])} if row.get(name) is not None else row for row in rows]
    if not rows:
        raise DataError(f"{path}, split {split}: no rows")
    for index, row in enumerate(rows):
        if empty := [names for names in columns if all(row.get(name) is None for name in names)]:
            raise DataError(f"{path}, split {split}, row {index}: no value for {_in_words(empty)}")
    return rows


def line_of(path: str, index: int) -> str:
    """Where a row stands in a file of JSON lines, in words: ", line 3"; nothing for other files."""
    local = Path(path).expanduser()
    if local.suffix not in JSON_FILES:
        return ""
    lines = local.read_text(encoding="utf-8").split("\n")
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    return f", line {filled[index]}" if index < len(filled) and not lines[0].lstrip().startswith("[") else ""


def check_local(path: str) -> None:
    """Accepts a path whose rows could be read, and a name that may be one on the Hub.

    Raises:
        DataError: a file that is not there, or cannot be read as JSON; or a folder that is not there.
    """
    local = Path(path).expanduser()
    if local.suffix in JSON_FILES:
        _read_json(path, local)
    elif (is_single_file(path) or path.startswith(("/", "./", "../", "~"))) and not local.exists():
        raise DataError(f"{path}: no such file")


def check_split(path: str, *, subset: str | None, revision: str | None, split: str) -> None:
    """Accepts a split that is there. No rows are read: a folder's own list is, or that of the Hub or its cache.

    Raises:
        DataError: there is no such data set, subset, revision or split.
    """
    local = Path(path).expanduser()
    if is_single_file(path) or (local / SAVED_DATASET).is_file():
        return  # which have one split, whatever its name
    if (local / SAVED_SPLITS).is_file():
        there = loads((local / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
        if split not in there:
            raise _no_split(path, split, there)
        return
    from datasets import load_dataset_builder  # noqa: PLC0415 as in _open

    look_for_hub(path)
    with _one_line(path, subset, split):
        builder = load_dataset_builder(path, subset, revision=revision)
    there = list(map(str, dict.fromkeys((*(builder.info.splits or ()), *(builder.config.data_files or ())))))
    wanted = {part.partition("[")[0].strip() for part in split.split("+")} - {"all"}
    if there and not wanted <= set(there):
        raise _no_split(path, split, there)


def _no_split(path: str, split: str, there: Sequence[str]) -> DataError:
    return DataError(f"{path}: no split {split}; it has {', '.join(there)}")


def _check_columns(path: str, columns: Sequence[Sequence[str]], there: Sequence[str], names: Mapping[str, str]) -> None:
    if missing := [alternatives for alternatives in columns if not set(alternatives) & set(there)]:
        hint = "" if names else f" (data.columns={{{missing[0][0]}: NAME}} says which column it is)"
        raise DataError(f"{path}: no column {_in_words(missing)}; it has {', '.join(there) or 'none'}{hint}")
    for name, given in names.items():
        if given not in there:
            raise DataError(f"{path}: no column {given} (data.columns.{name}); it has {', '.join(there) or 'none'}")


def _in_words(columns: Sequence[Sequence[str]]) -> str:
    return ", ".join(" or ".join(names) for names in columns)


def _read_json(path: str, local: Path) -> list[dict[str, Any]]:
    """JSON lines, or one list. Read here because Arrow wants each column to have one type, and answers have many."""
    if not local.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = local.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    lines = [(1, text)] if text.lstrip().startswith("[") else list(enumerate(text.split("\n"), 1))
    rows = []
    for number, line in lines:
        if not line.strip():
            continue
        try:
            rows.append(loads(line))
        except JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number + error.lineno - 1}: cannot be read as JSON ({error.msg})"
            ) from error
    rows = rows[0] if len(lines) == 1 and isinstance(rows[0], list) else rows
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f'{path}, row {index}: cannot be read: a row is an object, such as {{"prompt": "..."}}')
    return rows


def _open(path: str, local: Path, subset: str | None, revision: str | None, split: str) -> Any:
    # Other than JSON is read by this package only, and its import takes as long as making the built-in task.
    from datasets import DatasetDict, load_dataset, load_from_disk  # noqa: PLC0415

    with _one_line(path, subset, split):
        if is_single_file(path):
            if not local.is_file():
                raise DataError(f"{path}: no such file")
            if local.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty")
            return load_dataset("parquet", data_files=str(local), split="train")
        if (local / SAVED_DATASET).is_file() or (local / SAVED_SPLITS).is_file():
            if not any(local.rglob("*.arrow")):
                raise DataError(f"{path}: no rows")  # which load_from_disk does not survive
            saved = load_from_disk(str(local))
            if not isinstance(saved, DatasetDict):
                return saved
            if split not in saved:
                raise _no_split(path, split, list(saved))
            return saved[split]
        if local.is_file():
            raise DataError(f"{path}: the file's name must end in {', '.join(FORMATS)}")
        look_for_hub(path)
        return load_dataset(path, subset, split=split, revision=revision)


@contextmanager
def _one_line(path: str, subset: str | None, split: str) -> Iterator[None]:
    """Turns what the data sets' package says of a data set that it cannot open into a DataError of one line."""
    from datasets.exceptions import DatasetGenerationError  # noqa: PLC0415 as in _open

    try:
        yield
    except DatasetGenerationError as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error.__cause__ or error)})") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}, subset {subset or 'none'}, split {split}: {_first_line(error)}; data.path (data.eval_path) is a "
            f"Hub name, a file ending in {', '.join(FORMATS)}, or a folder made by save_to_disk"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
