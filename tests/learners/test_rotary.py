import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from shoal.config import ShoalConfig
from shoal.learners.cpu.mixed import SharedCast
from shoal.learners.cpu.rotary import use_rotary_tables
from shoal.runtime import resolve_runtime

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda: LlamaRotaryEmbedding(LlamaConfig(**SIZES)), ()),
        (lambda: Gemma3RotaryEmbedding(Gemma3TextConfig(**SIZES)), ("sliding_attention",)),
    ],
)
def test_a_table_gives_the_modules_own_values_bit_for_bit(make, arguments):
    cfg = ShoalConfig()
    cfg.runtime.target = "cpu"
    plain, tabled = make(), nn.Sequential(make())
    use_rotary_tables(tabled, resolve_runtime(cfg.runtime, cfg.model))
    x, positions = torch.zeros(2, 5, 32), torch.tensor([[0, 1, 2, 2, 3], [7, 0, 1, 40, 41]])
    for mine, own in zip(tabled[0](x, positions, *arguments), plain(x, positions, *arguments), strict=True):
        assert mine.shape == own.shape
        assert torch.equal(mine, own)


def test_a_cast_is_shared_by_the_same_input_and_made_again_after_a_write_to_it():
    cast, x = SharedCast(torch.bfloat16), torch.ones(2, 3)
    first = cast(x)
    assert cast(x) is first
    assert cast(torch.ones(2, 3)) is not first
    again = cast(x)
    x.add_(1)
    assert cast(x) is not again
    assert cast(x).tolist() == [[2.0] * 3] * 2
