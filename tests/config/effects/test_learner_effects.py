"""Keys of `learner`: how the same gradient is computed."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Lfm2Config, Lfm2ForCausalLM

from effects.made import HIDDEN, VOCABULARY, counted_calls, made_batch
from effects.registry import effect
from shoal.errors import ConfigError, TrainingError
from shoal.learners.deepspeed.settings import deepspeed_settings
from shoal.models.info import read_info
from shoal.runtime import resolve_runtime
from shoal.tasks.story import story_tokenizer


@pytest.fixture
def step(settings, make_learner):
    """Metrics of one step under changed keys, with the number of forward passes with gradient."""

    def take(changes: dict[str, object]) -> dict[str, float]:
        cfg = settings({"learner.packing": "off", "learner.share_prefix": False, **changes})
        learner = make_learner(cfg)
        with counted_calls(learner.passes.forward.decoder) as calls:
            metrics = learner.train(made_batch(cfg))
        return {**metrics, "calls": float(len(calls))}

    return take


SHARDED = {"learner.kind": "deepspeed", "engine.kind": "vllm_server", "weight_sync.kind": "broadcast"}


@effect("learner.kind", "learner.num_devices")
def test_several_devices_are_for_the_kind_of_learner_that_has_them(settings):
    assert settings({**SHARDED, "learner.num_devices": 2}).learner.num_devices == 2
    with pytest.raises(ConfigError, match=r"learner=local trains on one device: set .*, or learner=deepspeed"):
        settings({"learner.kind": "local", "learner.num_devices": 2})
    settings({"learner.kind": "local", "learner.num_devices": 1})


@pytest.fixture
def of_deepspeed(settings):
    """DeepSpeed's own configuration under changed keys."""

    def make(changes: dict[str, object]) -> dict[str, Any]:
        cfg = settings({**SHARDED, **changes})
        return deepspeed_settings(cfg, resolve_runtime(cfg.runtime, cfg.model))

    return make


@effect("learner.zero_stage")
def test_the_stage_is_deepspeeds(of_deepspeed, settings):
    assert [of_deepspeed({"learner.zero_stage": stage})["zero_optimization"]["stage"] for stage in (0, 3)] == [0, 3]


@effect("learner.offload_optimizer", "learner.offload_parameters")
def test_what_is_offloaded_is_in_the_memory_of_the_cpu(of_deepspeed, settings):
    def offloaded(optimizer: bool, parameters: bool) -> dict[str, Any]:
        changes = {"learner.offload_optimizer": optimizer, "learner.offload_parameters": parameters}
        found = of_deepspeed({**changes, "learner.zero_stage": 3})["zero_optimization"]
        return {name: value["device"] for name, value in found.items() if name.startswith("offload_")}

    assert offloaded(False, False) == {}
    assert offloaded(True, True) == {"offload_optimizer": "cpu", "offload_param": "cpu"}


@effect("learner.deepspeed_config")
def test_a_file_adds_what_no_key_says(of_deepspeed, settings, tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"wall_clock_breakdown": true}')
    assert "wall_clock_breakdown" not in of_deepspeed({})
    assert of_deepspeed({"learner.deepspeed_config": str(file)})["wall_clock_breakdown"] is True


@effect("learner.timeout")
@pytest.mark.ray
@pytest.mark.slow
def test_ranks_that_do_not_start_in_time_end_the_run(settings, tmp_path):
    pytest.importorskip("ray", reason="needs Ray")
    from shoal.cluster.cluster import Cluster  # noqa: PLC0415 - imports Ray
    from shoal.cluster.deepspeed_learner import DeepSpeedLearner  # noqa: PLC0415 - imports Ray

    for seconds in (1.0, 1.5):
        cfg = settings({**SHARDED, "learner.timeout": seconds})
        with (
            closing(Cluster(cfg)) as cluster,
            pytest.raises(TrainingError, match=rf"rank 0 did not \w.* within {seconds:g} s \(learner\.timeout\)"),
        ):
            DeepSpeedLearner(cfg, read_info(cfg.model), cluster, 1, tmp_path)


@effect("learner.restarts")
@pytest.mark.ray
def test_ranks_are_started_again_so_often(settings, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs Ray")
    from shoal.cluster import deepspeed_learner  # noqa: PLC0415 - imports Ray

    class DyingRanks:
        """Each life ends at the first question about log-probs."""

        runtime = None

        def __init__(self, *_: object) -> None:
            self.lives = 0

        def start(self) -> None:
            self.lives += 1

        def kill(self) -> None:
            pass

        def ask(self, method: str, *_: object) -> list[int]:
            if method == "logprobs":
                raise deepspeed_learner.RankLost("rank 0 died")
            return [0]

    class Placed:
        def mend(self) -> None:
            pass

    monkeypatch.setattr(deepspeed_learner, "Ranks", DyingRanks)
    for restarts in (0, 2):
        cfg = settings({**SHARDED, "learner.restarts": restarts, "checkpoint.every": 10})
        learner = deepspeed_learner.DeepSpeedLearner(cfg, read_info(cfg.model), Placed(), 1, tmp_path)
        with pytest.raises(TrainingError, match="rank 0 died"):
            learner.logprobs([])
        assert learner.ranks.lives == 1 + restarts


@effect("learner.micro_batch_tokens", "learner.micro_batch_size")
def test_micro_batches_are_bounded_by_tokens_and_by_completions(step, settings):
    # Three completions have an advantage, each at most 5 + 6 - 1 tokens; one more pass measures those that have none.
    whole = step({})
    for changes in ({"learner.micro_batch_tokens": 10}, {"learner.micro_batch_size": 1}):
        bounded = step(changes)
        assert (whole["calls"], bounded["calls"]) == (2, 4)
        assert bounded["train/grad_norm"] == pytest.approx(whole["train/grad_norm"], rel=1e-4)


@effect("learner.packing")
def test_packing_puts_completions_one_after_another_without_padding(step, settings):
    # Contexts of 5 and 3, 5, 6 sampled tokens, the last of each not run: 7 + 9 + 10 tokens, in three rows of 10 or
    # in one row.
    padded, packed, automatic = (step({"learner.packing": value}) for value in ("off", "on", "auto"))
    assert padded["train/forwarded_tokens"] == 30
    assert padded["train/padding"] == pytest.approx(4 / 30)
    assert packed["train/forwarded_tokens"] == automatic["train/forwarded_tokens"] == 26
    assert packed["train/grad_norm"] == pytest.approx(padded["train/grad_norm"], rel=1e-4)


@effect("learner.packing")
def test_packing_of_a_model_that_cannot_is_refused_or_left_out(settings, make_learner, tmp_path):
    # Convolutions run along the row, over whatever stands in it.
    tokenizer = story_tokenizer()
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        eos_token_id=tokenizer.eos_token_id,
    )
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = {"model.name": str(tmp_path)}
    assert make_learner(settings({**model, "learner.packing": "auto"})).passes.packing is False
    with pytest.raises(ConfigError, match=r"cannot be packed \(it has conv layers\); use auto or off"):
        make_learner(settings({**model, "learner.packing": "on"}))


@effect("learner.pack_length")
def test_pack_length_is_the_length_of_a_row(settings, make_learner):
    def widths(changes: dict[str, int]) -> set[int]:
        cfg = settings({"learner.share_prefix": False, **changes})
        return {one.until.shape[1] for one in make_learner(cfg).passes.pack(made_batch(cfg).sequences)}

    # Six completions of 5 + length - 1 tokens: 7 + 9 + 10 + 8 + 6 + 7 in one row, or rows of at most 20.
    assert widths({}) == {47}
    assert max(widths({"learner.pack_length": 20})) <= 20


@effect("learner.share_prefix")
def test_a_shared_prompt_runs_once(step, settings):
    apart, shared = (step({"learner.packing": "on", "learner.share_prefix": value}) for value in (False, True))
    # The prompt of 5 tokens twice less.
    assert (apart["train/forwarded_tokens"], shared["train/forwarded_tokens"]) == (26, 16)
    assert shared["train/grad_norm"] == pytest.approx(apart["train/grad_norm"], rel=1e-4)


class LargestLogits(TorchDispatchMode):
    """Keeps the largest number of tokens that a tensor with an entry for each word has."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and VOCABULARY in result.shape and HIDDEN not in result.shape:
            self.tokens = max(self.tokens, result.numel() // VOCABULARY)
        return result


@effect("learner.logprob_chunk")
def test_no_more_logits_exist_at_a_time_than_a_chunk(settings, make_learner):
    def most(chunk: int) -> int:
        cfg = settings({"learner.logprob_chunk": chunk})
        learner = make_learner(cfg)
        with LargestLogits() as largest:
            learner.train(made_batch(cfg))
        return largest.tokens

    # 14 tokens of the three completions with an advantage.
    assert most(2048) == 14
    assert most(4) == 4


@effect("learner.skip_zero_advantage")
def test_completions_of_zero_advantage_go_through_the_model_or_not(step, settings):
    skipped, run = (step({"learner.skip_zero_advantage": value}) for value in (True, False))
    # Three rows of 10 tokens, or all six.
    assert (skipped["train/forwarded_tokens"], run["train/forwarded_tokens"]) == (30, 60)
    assert run["train/grad_norm"] == pytest.approx(skipped["train/grad_norm"], rel=1e-4)
