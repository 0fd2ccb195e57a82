"""Tokenised data, kept by a hash of everything that it is made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from logging import getLogger
from pathlib import Path
from typing import Any

import msgpack
import transformers
from transformers import PreTrainedTokenizerBase

from shoal.files import cache_folder, file_trouble, write_atomically
from shoal.types import Message

logger = getLogger(__name__)

TokenIds = list[list[int]]


def cache_key(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]
) -> str:
    """Names the token ids of these conversations.

    It covers what is said in them and not where the rows lie or how they are read: the same rows under another name
    need no new tokenising, and a changed file, Hub revision, split, layout or system prompt cannot go unnoticed. Of the
    tokenizer it covers vocabulary, merges, added tokens and chat template; transformers' release, because that renders
    the template.
    """
    digest = sha256(_vocabulary(tokenizer).encode())
    parts = [tokenizer.chat_template, template_kwargs, tokenizer.special_tokens_map, transformers.__version__]
    digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    for messages in conversations:
        digest.update(json.dumps(messages, default=str).encode())
    return digest.hexdigest()[:32]


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.is_fast:
        return str(tokenizer.backend_tokenizer.to_str())
    return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)


def cached(key: str, rows: int, make: Callable[[], TokenIds]) -> TokenIds:
    """The token ids kept under `key`; made and kept where there are none, or where the file is damaged."""
    path = cache_path(key)
    if path.is_file():
        try:
            ids: TokenIds = msgpack.unpackb(path.read_bytes())
        except (ValueError, OSError, msgpack.UnpackException):
            ids = []
        if isinstance(ids, list) and len(ids) == rows:
            logger.debug("token ids from %s", path)
            return ids
        logger.warning("%s is damaged: tokenising again", path)
    ids = make()
    try:
        write_atomically(path, msgpack.packb(ids))
    except OSError as error:
        logger.warning(
            "the tokenised data cannot be kept (%s): it is made anew each time", file_trouble(error) or error
        )
    return ids


def cache_path(key: str) -> Path:
    """Where token ids are kept."""
    return cache_folder() / "data" / f"{key}.msgpack"
