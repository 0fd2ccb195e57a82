import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from shoal.config import ShoalConfig
from shoal.learners.cpu.norm import _LeanNorm, _RMSNorm, use_lean_norms
from shoal.runtime import resolve_runtime


def on_the_cpu(module: nn.Module) -> nn.Module:
    cfg = ShoalConfig()
    cfg.runtime.target = "cpu"
    model = nn.Sequential(module)
    use_lean_norms(model, resolve_runtime(cfg.runtime, cfg.model))
    return model[0]


def test_the_lean_norm_has_the_values_and_gradients_of_the_models_own():
    own, lean = Qwen3RMSNorm(8), on_the_cpu(Qwen3RMSNorm(8))
    assert isinstance(lean, _LeanNorm)
    with torch.no_grad():
        for module in (own, lean):
            module.weight.copy_(torch.linspace(0.5, 1.5, 8))
    gradients = []
    for module in (own, lean):
        x = torch.linspace(-2, 3, 48).view(2, 3, 8).requires_grad_()
        out = module(x)
        (out * torch.linspace(1, 2, 48).view(2, 3, 8)).sum().backward()
        gradients.append((out, x.grad, module.weight.grad))
    for mine, theirs in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_gradient_is_the_formulas():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: _RMSNorm.apply(x, weight, 1e-6), (x, weight))


def test_another_kind_of_norm_stays_as_it_is():
    assert not isinstance(on_the_cpu(GemmaRMSNorm(8)), _LeanNorm)


def test_another_dtype_takes_the_models_own_way():
    norm = on_the_cpu(Qwen3RMSNorm(8)).to(torch.bfloat16)
    x = torch.linspace(-2, 3, 16, dtype=torch.bfloat16).view(2, 8)
    assert torch.equal(norm(x), Qwen3RMSNorm(8).to(torch.bfloat16)(x))
