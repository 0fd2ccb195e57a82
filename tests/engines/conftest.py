"""A tiny model and a byte-level tokenizer without a pad token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_models import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm_tiny import API_KEY, save_vllm_model, server_engine


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and two special tokens; 256 is the end of sequence, and there is no pad token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Ids in the order of the bytes that the characters stand for.
    by_byte = sorted(alphabet, key=lambda c: ord(c) if ord(c) < 256 else ord(c) - 256 + 1000)
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(by_byte)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<end>", "<turn>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", clean_up_tokenization_spaces=False)


@pytest.fixture(scope="session")
def qwen() -> Any:
    return build("qwen3")


@pytest.fixture(scope="session")
def vllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the model that vLLM loads, and the servers' logs."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def vllm_model(vllm_folder: Path, tokenizer: Any) -> Any:
    return save_vllm_model(vllm_folder / "model", tokenizer)


@pytest.fixture(scope="session")
def server(vllm_folder: Path, vllm_model: Any, tokenizer: Any) -> Iterator[Any]:
    """An engine on one launched server, which asks for a key; for all tests, because it takes long to start."""
    engine = server_engine(vllm_folder / "model", vllm_model, tokenizer, vllm_folder, api_key=API_KEY, restarts=100)
    yield engine
    engine.close()
