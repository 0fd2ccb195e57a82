"""Rows of a data set: from the Hub, a local JSONL or Parquet file, or a folder made by `save_to_disk`."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from shoal.errors import DataError

logger = getLogger(__name__)

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"


def is_single_file(path: str) -> bool:
    """Whether `path` names a file, which has one split whatever its name."""
    return Path(path).suffix in FORMATS


def read_rows(path: str, *, subset: str | None, split: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one split, in order, with the asked columns. A single file has one split.

    Raises:
        DataError: there is no such file, data set, split or column, a value is missing, or there are no rows.
    """
    dataset = _open(path, subset, split)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(dataset.column_names) or 'none'}")
    rows = dataset.select_columns(list(columns)).to_list()
    if not rows:
        raise DataError(f"{path}, split {split}: no rows")
    for index, row in enumerate(rows):
        if empty := [column for column in columns if row[column] is None]:
            raise DataError(f"{path}, split {split}, row {index}: no value for {', '.join(empty)}")
    return rows


def _open(path: str, subset: str | None, split: str) -> Any:
    # Reading rows is the only use of this package, and its import takes as long as making the built-in task.
    from datasets import DatasetDict, load_dataset, load_from_disk  # noqa: PLC0415
    from datasets.exceptions import DatasetGenerationError  # noqa: PLC0415

    local = Path(path).expanduser()
    try:
        if is_single_file(path):
            if not local.is_file():
                raise DataError(f"{path}: no such file")
            if local.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty")
            return load_dataset(FORMATS[local.suffix], data_files=str(local), split="train")
        if (local / SAVED_DATASET).is_file() or (local / SAVED_SPLITS).is_file():
            if not any(local.rglob("*.arrow")):
                raise DataError(f"{path}: no rows")  # which load_from_disk does not survive
            saved = load_from_disk(str(local))
            if not isinstance(saved, DatasetDict):
                return saved
            if split not in saved:
                raise DataError(f"{path}: no split {split}; it has {', '.join(saved)}")
            return saved[split]
        if local.is_file():
            raise DataError(f"{path}: the file's name must end in {', '.join(FORMATS)}")
        return load_dataset(path, subset, split=split)
    except DatasetGenerationError as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error.__cause__ or error)})") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}, subset {subset or 'none'}, split {split}: {_first_line(error)}; data.path (data.eval_path) is a "
            f"Hub name, a file ending in {', '.join(FORMATS)}, or a folder made by save_to_disk"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
