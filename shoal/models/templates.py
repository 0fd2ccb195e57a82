"""Chat templates by name, for models that bring none: `model.chat_template=chatml`."""

from __future__ import annotations

PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n' }}{% endif %}"
)

DIALOGUE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# In the manner of DeepSeek-R1-Zero (arXiv:2501.12948, table 1): it asks a base model for both blocks.
R1 = (
    "{{ bos_token or '' }}"
    "The user asks a question and the assistant answers it. The assistant first reasons between <think> and </think>, "
    "then gives the answer between <answer> and </answer>.{{ '\n\n' }}" + DIALOGUE.removeprefix("{{ bos_token or '' }}")
)

TEMPLATES = {"plain": PLAIN, "dialogue": DIALOGUE, "chatml": CHATML, "r1": R1}
"""`plain`: the contents, with empty lines between; `dialogue`: `User:` and `Assistant:` before them; `chatml`: between
`<|im_start|>` and `<|im_end|>`; `r1`: `dialogue` after a request for think and answer blocks."""
