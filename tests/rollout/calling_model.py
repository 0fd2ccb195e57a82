"""A random model that calls a tool by chance, since a whole call is one id of its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

START, END = "<|im_start|>", "<|im_end|>"
CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "3+4"}}</tool_call>'
ROLES = ("user\n", "assistant\n", "tool\n")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ("3", "7", "33", "37", "73", "77", "333", "777")


def save_calling_model(folder: Path) -> Path:
    """A Qwen3 of two layers with its tokenizer."""
    words = [START, END, *ROLES, CALL, "3", "7"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="3"))
    known = r"<\|im_start\|>|<\|im_end\|>|user\n|assistant\n|tool\n|<tool_call>.*?</tool_call>|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(known), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)
    made.add_special_tokens({"additional_special_tokens": [START]})
    made.chat_template = TEMPLATE
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = Qwen3ForCausalLM(
            Qwen3Config(vocab_size=len(words), intermediate_size=128, head_dim=32, eos_token_id=1, **sizes)
        )
    random.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
