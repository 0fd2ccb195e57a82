"""From messages to token ids, through the tokenizer's chat template where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shoal.errors import DataError

Message = dict[str, Any]


def render(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]
) -> list[list[int]]:
    """Token ids of each conversation, ready for the model to answer.

    With a chat template the special tokens are the template's; without one the contents are joined by empty lines
    and the tokenizer adds its own.

    Raises:
        DataError: the chat template cannot render the messages.
    """
    if not tokenizer.chat_template:
        texts = ["\n\n".join(message["content"] for message in messages) for messages in conversations]
        return tokenizer(texts)["input_ids"]
    try:
        texts = [
            str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_kwargs))
            for messages in conversations
        ]
    except TemplateError as error:
        raise DataError(
            f"the chat template cannot render the messages ({error}); see model.chat_template, "
            "model.chat_template_kwargs and data.system_prompt"
        ) from error
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
