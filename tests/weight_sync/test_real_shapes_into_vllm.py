"""vLLM in 16 bits, over a model of a real one's width and vocabulary: the self-check passes, and faults are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sync_models import a_batch
from transformers import LlamaConfig, LlamaForCausalLM

from shoal.build import build_parts
from shoal.config import ShoalConfig
from shoal.config.validate import validate
from shoal.errors import TrainingError
from shoal.tasks import story
from shoal.training.parts import Parts

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("vllm", reason="vLLM is not installed")

Make = Callable[[str, str, str], Parts]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 56M parameters, the shape of SmolLM2-135M with fewer layers."""
    tokenizer = story.story_tokenizer()
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.04,  # its distributions are far from uniform
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("wide_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_parts(wide_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    """Learner, vLLM in this process and a broadcast between them; the tolerance is the default one."""
    monkeypatch.setattr(story, "TRAIN_PROBLEMS", 8)
    monkeypatch.setattr(story, "HELD_OUT_PROBLEMS", 4)
    made: list[Parts] = []

    def make(train: str, dtype: str, mixed_precision: str) -> Parts:
        cfg = ShoalConfig()
        cfg.model.name, cfg.model.train, cfg.model.dtype = str(wide_model), train, dtype
        cfg.runtime.target, cfg.runtime.mixed_precision = "cpu", mixed_precision
        cfg.engine.kind, cfg.weight_sync.kind = "vllm", "broadcast"
        cfg.engine.max_batch, cfg.engine.vllm.cache_gib = 4, 0.25
        cfg.weight_sync.self_check_every = 1
        cfg.optimizer.lr = 1e-3
        validate(cfg)
        made.append(build_parts(cfg, {}, tmp_path / "run"))
        return made[-1]

    yield make
    for parts in made:
        parts.close()


@pytest.mark.parametrize(
    ("train", "dtype", "mixed_precision"), [("full", "float32", "bf16"), ("lora", "bfloat16", "none")]
)
def test_in_16_bits_the_check_passes_and_finds_weights_one_step_old_and_a_cache_that_was_not_reset(
    make_parts: Make, monkeypatch: pytest.MonkeyPatch, train: str, dtype: str, mixed_precision: str
):
    parts = make_parts(train, dtype, mixed_precision)
    sync: Any = parts.sync
    replica = parts.engine.replicas[0]

    def step() -> int:
        parts.learner.train(a_batch(), parts.sync)
        return parts.learner.version

    for version in range(3):
        assert "self_check" in sync.publish(version).wait()
        assert step() == version + 1
    sync.publish(3).wait()

    with monkeypatch.context() as patch:
        model = workers_model(parts)

        def load_nothing(weights: Any) -> set[str]:
            for _ in weights:  # they come over the wire
                pass
            return {name for name, _ in model.named_parameters()}

        patch.setattr(model, "load_weights", load_nothing, raising=False)
        step()
        with pytest.raises(TrainingError, match=r"at version 4 .* log-probs differ .* its weights are stale"):
            sync.publish(4)
    sync.published = None  # as if the run went on: the next publication mends it
    replica.resume()
    sync.publish(4).wait()

    with monkeypatch.context() as patch:
        patch.setattr(replica, "reset_prefix_cache", lambda: None)
        step()
        with pytest.raises(TrainingError, match="its prefix cache was not reset"):
            sync.publish(5)


def workers_model(parts: Parts) -> Any:
    """vLLM's module, which is in this process."""
    executor = parts.engine.llm.model_executor  # type: ignore[attr-defined]
    return executor.driver_worker.worker.model_runner.get_model()
