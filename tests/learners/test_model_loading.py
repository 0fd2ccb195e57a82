"""Loading any causal language model, and the one-line errors where that cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, SHAPE, VOCABULARY, make_config, make_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, T5Config

from shoal.build import check_ids
from shoal.config import ShoalConfig
from shoal.engines.stopping import eos_ids
from shoal.engines.vllm.arguments import policy_arguments
from shoal.errors import ConfigError
from shoal.learners.cpu.mixed import ROWS, MixedLinear, SharedCast
from shoal.learners.model import Policy, load_policy
from shoal.models.adapters import rank_of
from shoal.models.info import linear_names
from shoal.runtime import resolve_runtime
from shoal.tasks.base import Task
from shoal.types import Prompt

Folder = Callable[[str], Path]


def load(cfg: ShoalConfig) -> Policy:
    return load_policy(cfg.model, resolve_runtime(cfg.runtime, cfg.model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_loads_in_evaluation_mode_with_its_limits(model_folder: Folder, name: str):
    policy = load(make_config(model_folder(name)))
    assert not policy.model.training
    assert (policy.vocabulary, policy.max_positions) == (48, 256)
    # Whole layers of the Llama family run by trees; sliding windows and other layers by a mask.
    expected = {"gemma2": "eager", "qwen3": "sdpa_trees", "llama": "sdpa_trees"}
    assert policy.model.config._attn_implementation == expected.get(name, "sdpa")
    assert eos_ids(policy.model, policy.tokenizer) == [1]


def test_a_models_own_dropout_is_off_even_in_training_mode(model_folder: Folder):
    model = load(make_config(model_folder("gpt2"))).model.train()
    ids = torch.arange(2, 20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_attention_and_dtype_can_be_set_by_hand(model_folder: Folder):
    policy = load(make_config(model_folder("llama"), model__attention="eager", model__dtype="bfloat16"))
    assert policy.model.config._attn_implementation == "eager"
    assert policy.model.dtype == torch.bfloat16


def test_mixed_precision_replaces_all_linear_layers_but_the_head(model_folder: Folder):
    model = load(make_config(model_folder("llama"), runtime__mixed_precision="bf16")).model
    mixed = [name for name, module in model.named_modules() if isinstance(module, MixedLinear)]
    assert len(mixed) == 2 * 7
    assert type(model.lm_head) is torch.nn.Linear
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_mixed_layer_sees_every_write_to_its_weight():
    layer = torch.nn.Linear(4, 3)
    layer.__class__, x = MixedLinear, torch.ones(2, 4)
    assert isinstance(layer, MixedLinear)
    layer.casts = SharedCast(torch.bfloat16)
    for write in (
        lambda: torch.nn.init.zeros_(layer.weight),
        lambda: layer.load_state_dict({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}),
        lambda: torch.optim.SGD(layer.parameters(), lr=1.0).step(),
    ):
        layer(x).sum().backward()
        write()
        torch.testing.assert_close(
            layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), rtol=0.02, atol=0.02
        )


def test_a_chat_template_comes_from_a_file_or_as_text(model_folder: Folder, tmp_path: Path):
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    file = tmp_path / "template.jinja"
    file.write_text(text)
    for given in (text, str(file)):
        assert load(make_config(model_folder("qwen3"), model__chat_template=given)).tokenizer.chat_template == text
    with pytest.raises(ConfigError, match="neither a file nor a Jinja template"):
        load(make_config(model_folder("qwen3"), model__chat_template="missing.jinja"))


def test_the_tokenizer_can_come_from_elsewhere(model_folder: Folder, tmp_path: Path):
    make_tokenizer(20).save_pretrained(tmp_path)
    policy = load(make_config(model_folder("qwen3"), model__tokenizer=str(tmp_path)))
    assert len(policy.tokenizer) == policy.vocabulary == 20


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"there is no tokenizer '.*nowhere' here or on the Hub") as caught:
        load(make_config(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_one_line(model_folder: Folder, tmp_path: Path):
    make_tokenizer().save_pretrained(tmp_path)
    ARCHITECTURES["qwen3"]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"the model in .* cannot be loaded") as caught:
        load(make_config(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_refused(tmp_path: Path):
    T5Config(vocab_size=48).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a t5 model, which is no causal language model"):
        load(make_config(tmp_path))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(model_folder: Folder, tmp_path: Path):
    make_tokenizer(60).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the tokenizer has 60 ids, the model only 48"):
        load(make_config(model_folder("qwen3"), model__tokenizer=str(tmp_path)))


def test_a_model_that_can_never_stop_is_refused(tmp_path: Path):
    model = AutoModelForCausalLM.from_config(Qwen3Config(**{**SHAPE, "eos_token_id": None}))
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    make_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no completion could ever stop"):
        load(make_config(tmp_path))


def test_lora_adapts_every_linear_layer_but_the_head(model_folder: Folder):
    policy = load(make_config(model_folder("llama"), model__train="lora", model__lora__r=4))
    trained = [name for name, one in policy.model.named_parameters() if one.requires_grad]
    assert len(trained) == 2 * 7 * 2
    assert not any("lm_head" in name for name in trained)
    assert linear_names(policy.causal_lm.__class__(LlamaConfig(**SHAPE))) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def test_lora_takes_module_names_and_layer_indices(model_folder: Folder):
    keys = {"model__train": "lora", "model__lora__target_modules": ["q_proj"], "model__lora__layers": [1]}
    model = load(make_config(model_folder("llama"), **keys)).model
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert len(trained) == 2
    assert all(".layers.1." in name and ".q_proj." in name for name in trained)


def test_lora_names_the_layers_there_are_when_the_wanted_one_is_not(model_folder: Folder):
    keys = {"model__train": "lora", "model__lora__target_modules": ["query"]}
    with pytest.raises(ConfigError, match="its linear layers are down_proj, gate_proj"):
        load(make_config(model_folder("llama"), **keys))


def test_lora_without_peft_names_the_pip_command(model_folder: Folder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'shoal-rl\[lora\]'"):
        load(make_config(model_folder("llama"), model__train="lora"))


def test_a_few_added_tokens_beyond_the_models_ids_are_let_through(model_folder: Folder, tmp_path: Path):
    """Gemma 3: the model has 262144 ids, the tokenizer an image token more."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image_soft_token>"])
    tokenizer.save_pretrained(tmp_path)
    policy = load(make_config(model_folder("gemma3"), model__tokenizer=str(tmp_path)))
    assert len(policy.tokenizer) == VOCABULARY + 1
    assert policy.vocabulary == VOCABULARY


@pytest.mark.parametrize("where", ["train", "evaluation"])
def test_a_prompt_with_a_token_that_the_model_does_not_know_is_refused_by_its_id(model_folder: Folder, where: str):
    policy = load(make_config(model_folder("llama")))
    known = Prompt("right", [0, VOCABULARY - 1])
    check_ids(Task([known], [known, Prompt("empty", [])], {}), policy.info)
    task = replace(Task([known], [known], {}), **{where: [known, Prompt("wrong", [3, VOCABULARY])]})
    with pytest.raises(ConfigError, match=f"prompt wrong: token {VOCABULARY} is beyond the model's {VOCABULARY} ids"):
        check_ids(task, policy.info)


def test_an_adapter_on_a_head_that_is_the_embeddings_too_is_refused(model_folder: Folder):
    keys = {"model__train": "lora", "model__lora__target_modules": ["q_proj", "lm_head"]}
    with pytest.raises(ConfigError, match="changes the head, which shares its weight with the embeddings"):
        load(make_config(model_folder("qwen3"), **keys))
    cfg = make_config(model_folder("llama"), **keys)
    untied = load(cfg)
    assert untied.info.adapter is not None and untied.info.adapter.on_head
    cfg.weight_sync.kind = "lora"
    with pytest.raises(ConfigError, match=r"weight_sync=lora: vLLM takes no adapter on the head: leave it out"):
        policy_arguments(cfg, untied.info, resolve_runtime(cfg.runtime, cfg.model))
    cfg.weight_sync.kind = "broadcast"  # carries the merged head
    assert policy_arguments(cfg, untied.info, resolve_runtime(cfg.runtime, cfg.model)).max_lora_rank == 0


@pytest.mark.parametrize(
    ("key", "value", "there"),
    [("r", 8, "4"), ("alpha", 64.0, "32.0"), ("dropout", 0.1, "0.0"), ("layers", [1], "None")],
)
def test_adapter_settings_beside_an_adapter_folder_are_refused(
    model_folder: Folder, tmp_path: Path, key: str, value: Any, there: str
):
    first = load(make_config(model_folder("llama"), model__train="lora", model__lora__r=4))
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"model\.lora\.{key}=.* has no effect on the adapter .* which has {there}"):
        load(make_config(tmp_path, model__train="lora", **{f"model__lora__{key}": value}))
    again = load(make_config(tmp_path, model__train="lora", model__lora__r=4))
    assert rank_of(again.model) == 4


@pytest.mark.parametrize("tokens", [3, 64, 65, 200, 1030])
def test_rows_added_to_a_mixed_product_change_neither_it_nor_its_gradients(tokens: int):
    generator = torch.Generator().manual_seed(tokens)
    layer = torch.nn.Linear(32, 16)
    layer.__class__, x = MixedLinear, torch.randn(tokens, 32, generator=generator, requires_grad=True)
    assert isinstance(layer, MixedLinear)
    layer.casts = SharedCast(torch.bfloat16)
    rows = layer.casts(x)
    assert len(rows) == (tokens if tokens < ROWS else -(-tokens // ROWS) * ROWS)
    assert torch.equal(rows[:tokens], x.to(torch.bfloat16)) and not rows[tokens:].any()
    out, factor = layer(x), torch.randn(tokens, 16, generator=generator)
    (out * factor).sum().backward()
    wide, small = layer.weight.detach().to(torch.bfloat16).float(), x.detach().to(torch.bfloat16).float()
    torch.testing.assert_close(out, small @ wide.T + layer.bias, rtol=0.02, atol=0.02)
    torch.testing.assert_close(x.grad, factor @ wide, rtol=0.02, atol=0.02)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, factor.T @ small, rtol=0.02, atol=0.02 * tokens**0.5)
