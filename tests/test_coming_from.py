"""docs/coming-from.md: its commands run, on a tiny model and local rows, and its keys are keys."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from shoal.config.keys import all_keys

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
OPEN_INSTRUCT2 = PAGE.partition("## Open-Instruct2")[2].partition("\n## ")[0]
EXAMPLES = [
    shlex.split(block.replace("\\\n", " "))
    for block in re.findall(r"```bash\n(.*?)```", OPEN_INSTRUCT2, flags=re.DOTALL)
]


def test_there_are_the_eight_launch_examples() -> None:
    assert len(EXAMPLES) == 8
    assert all(words[:2] == ["shoal", "train"] for words in EXAMPLES)


def test_every_key_on_the_page_is_a_key() -> None:
    named = re.findall(r"`((?:[a-z_]+\.)+[a-z_]+)(?:=[^`]*)?`", PAGE)
    roots = {name.partition(".")[0] for name in all_keys()}
    keys = {name for name in named if name.partition(".")[0] in roots}
    # An entry of a key that holds values by name, such as reward.verifiers.citations, has the key before its last dot.
    unknown = {key for key in keys if key not in all_keys() and key.rpartition(".")[0] not in all_keys()}
    unknown |= {key for key in keys if key not in all_keys() and all_keys().get(key.rpartition(".")[0], None) is None}
    assert len(keys) > 80
    assert not unknown


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of two layers whose tokens are characters."""
    folder = tmp_path_factory.mktemp("model")
    words = Tokenizer(WordLevel({chr(code): code for code in range(128)}, unk_token="\x00"))
    words.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="\x00", eos_token="\x03")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=3,
        pad_token_id=3,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows as `ai2-adapt-dev/rlvr_gsm8k_zs` has them."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    made = [
        {"messages": [{"role": "user", "content": f"{n}+{n}?"}], "ground_truth": str(2 * n), "dataset": "gsm8k"}
        for n in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(file)
