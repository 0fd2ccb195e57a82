"""Keys of `model` and `model.lora`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from effects.made import counted_calls, made_batch, made_groups
from effects.registry import effect
from shoal.errors import ConfigError
from shoal.learners.model import Policy, load_policy
from shoal.runtime import resolve_runtime
from shoal.tasks.dataset import build_task
from shoal.tasks.story import story_tokenizer


@pytest.fixture
def policy_of(settings):
    def load(changes: dict[str, object] | None = None) -> Policy:
        cfg = settings(changes)
        return load_policy(cfg.model, resolve_runtime(cfg.runtime, cfg.model))

    return load


@pytest.fixture
def trainable(make_learner, settings):
    """Names and sizes of the trained weights under changed keys."""

    def names(changes: dict[str, object]) -> dict[str, int]:
        learner = make_learner(settings(changes))
        return {name: one.numel() for name, one in learner.policy.model.named_parameters() if one.requires_grad}

    return names


@effect("model.name")
def test_the_name_says_which_weights_are_loaded(settings, policy_of, other_model):
    assert policy_of().model.config.num_hidden_layers == 2
    assert policy_of({"model.name": str(other_model)}).model.config.num_hidden_layers == 3


@effect("model.revision", "model.tokenizer_revision")
def test_revisions_reach_the_hub(settings, policy_of, monkeypatch):
    # Local folders have no revisions, and one is refused: what would go to the Hub is looked at where it leaves Shoal.
    for module in ("info", "loading"):
        monkeypatch.setattr(f"shoal.models.{module}.refuse_revision_of_folder", lambda *_: None)
    asked: list[tuple[str, str | None]] = []

    def listen(kind: type) -> None:
        load = kind.from_pretrained

        def from_pretrained(name: str, *args: object, **kwargs: object) -> object:
            asked.append((kind.__name__, kwargs.get("revision")))
            return load(name, *args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)

    for kind in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        listen(kind)

    def revisions(changes: dict[str, object]) -> dict[str, str | None]:
        asked.clear()
        policy_of(changes)
        return dict(asked)

    names = ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM")
    assert revisions({}) == dict.fromkeys(names)
    assert revisions({"model.revision": "v2"}) == dict.fromkeys(names, "v2")
    apart = {"model.revision": "v2", "model.tokenizer_revision": "v3"}
    assert revisions(apart) == {**dict.fromkeys(names, "v2"), "AutoTokenizer": "v3"}


@effect("model.tokenizer")
def test_another_tokenizer_can_be_named(settings, policy_of, tmp_path):
    tokenizer = story_tokenizer()
    tokenizer.eos_token = "="
    tokenizer.save_pretrained(tmp_path)
    assert policy_of().tokenizer.eos_token == "<end>"
    assert policy_of({"model.tokenizer": str(tmp_path)}).tokenizer.eos_token == "="


@effect("model.trust_remote_code")
def test_code_beside_the_weights_runs_only_when_it_is_trusted(settings, policy_of, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(tiny_model, tmp_path / "foreign")
    (folder / "foreign.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class ForeignConfig(Qwen3Config):\n    model_type = 'foreign'\n"
        "class ForeignModel(Qwen3ForCausalLM):\n    config_class = ForeignConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "foreign.ForeignConfig", "AutoModelForCausalLM": "foreign.ForeignModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"code of its own: read it, then set model\.trust_remote_code=true"):
        policy_of({"model.name": str(folder)})
    policy = policy_of({"model.name": str(folder), "model.trust_remote_code": True})
    assert type(policy.model).__name__ == "ForeignModel"


@effect("model.chat_template", "model.chat_template_kwargs")
def test_the_chat_template_and_its_arguments_shape_the_prompt(settings, tmp_path):
    def end_of_prompt(changes: dict[str, object]) -> str:
        cfg = settings(changes)
        tokenizer = load_policy(cfg.model, resolve_runtime(cfg.runtime, cfg.model)).tokenizer
        return tokenizer.decode(build_task(cfg, tokenizer).train[0].token_ids)[-3:]

    template = "{% for message in messages %}{{ message.content }}{% endfor %}{{ mark or ';' }}"
    assert end_of_prompt({}) == "ny?"
    assert end_of_prompt({"model.chat_template": template}) == "y?;"
    assert end_of_prompt({"model.chat_template": template, "model.chat_template_kwargs": {"mark": "="}}) == "y?="
    file = tmp_path / "template.jinja"
    file.write_text(template)
    assert end_of_prompt({"model.chat_template": str(file)}) == "y?;"


@effect("model.train")
def test_an_adapter_is_trained_and_saved_instead_of_all_weights(settings, make_learner, tmp_path):
    def saved(train: str) -> set[str]:
        make_learner(settings({"model.train": train})).export(tmp_path / train)
        return {file.name for file in (tmp_path / train).iterdir()}

    full, lora = saved("full"), saved("lora")
    assert {"config.json", "model.safetensors"} <= full and "adapter_config.json" not in full
    assert {"adapter_config.json", "adapter_model.safetensors"} <= lora and "model.safetensors" not in lora


@effect("model.dtype")
def test_parameters_have_the_dtype(settings, policy_of):
    expected = {
        "auto": torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    for name, dtype in expected.items():
        assert {one.dtype for one in policy_of({"model.dtype": name}).model.parameters()} == {dtype}


@effect("model.attention")
def test_attention_runs_in_the_named_implementation(settings, policy_of, monkeypatch):
    kernel = torch.nn.functional.scaled_dot_product_attention
    calls: list[int] = []

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)

    def kernels(attention: str) -> int:
        calls.clear()
        policy_of({"model.attention": attention}).model(torch.tensor([[5, 6, 7]]))
        return len(calls)

    # One call a layer.
    assert {name: kernels(name) for name in ("auto", "sdpa", "eager")} == {"auto": 2, "sdpa": 2, "eager": 0}
    with pytest.raises(ConfigError, match="flash_attention_2 needs CUDA"):
        policy_of({"model.attention": "flash_attention_2"})


@effect("model.gradient_checkpointing")
def test_gradient_checkpointing_runs_each_layer_again_in_the_backward_pass(settings, make_learner):
    def passes(changes: dict[str, object]) -> tuple[int, float]:
        cfg = settings(changes)
        learner = make_learner(cfg)
        with counted_calls(learner.policy.model.model.layers[0].mlp) as calls:
            norm = learner.train(made_batch(cfg))["train/grad_norm"]
        return len(calls), norm

    plain, checkpointed = passes({}), passes({"model.gradient_checkpointing": True})
    # One pass trains, one measures the completions that have no advantage.
    assert (plain[0], checkpointed[0]) == (2, 3)
    assert checkpointed[1] == pytest.approx(plain[1], rel=1e-5)


LORA = {"model.train": "lora"}


@effect("model.lora.r")
def test_the_rank_is_a_side_of_each_adapter_matrix(settings, trainable):
    sixteen, four = trainable(LORA), trainable({**LORA, "model.lora.r": 4})
    assert sixteen.keys() == four.keys()
    assert {name: size / 16 for name, size in sixteen.items()} == {name: size / 4 for name, size in four.items()}


@effect("model.lora.alpha")
def test_alpha_scales_the_update(settings, make_learner):
    # The second factor starts at 0, so that the first gradient is that of this factor, which alpha multiplies.
    def norm(changes: dict[str, object]) -> float:
        cfg = settings({**LORA, **changes})
        return make_learner(cfg).train(made_batch(cfg))["train/grad_norm"]

    assert norm({"model.lora.alpha": 64.0}) == pytest.approx(2 * norm({}), rel=1e-4)


@effect("model.lora.dropout")
def test_dropout_acts_in_training_and_not_in_scoring(settings, make_learner):
    def both(changes: dict[str, object]) -> tuple[float, list[list[float]]]:
        cfg = settings({**LORA, **changes})
        learner = make_learner(cfg)
        segments = [one.segments[0] for group in made_groups() for one in group.completions]
        return learner.train(made_batch(cfg))["train/grad_norm"], make_learner(cfg).logprobs(segments)

    (plain, scores), (dropped, same) = both({}), both({"model.lora.dropout": 0.5})
    assert abs(dropped / plain - 1) > 0.05
    assert same == scores


@effect("model.lora.target_modules", "model.lora.layers")
def test_the_adapter_sits_on_the_named_modules_and_layers(settings, trainable):
    def places(changes: dict[str, object]) -> set[tuple[str, str]]:
        # base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight
        return {(name.split(".")[4], name.split(".")[6]) for name in trainable({**LORA, **changes})}

    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert places({}) == {(layer, name) for layer in "01" for name in linear}
    assert places({"model.lora.target_modules": ["q_proj"]}) == {("0", "q_proj"), ("1", "q_proj")}
    assert places({"model.lora.layers": [1]}) == {("1", name) for name in linear}
