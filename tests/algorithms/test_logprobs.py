"""Chunked log-probs against autograd on whole logits."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.algorithms.logprobs import HeadForm, TokenLogprobs, chunked_logprobs, logprobs_of_logits

FORMS = [HeadForm(), HeadForm(scale=0.25), HeadForm(softcap=3.0), HeadForm(scale=2.0, softcap=1.5)]


def problem(
    seed: int, tokens: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [N, 5], weight [11, 5], bias [11], targets [N]."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return leaf(tokens, 5), leaf(11, 5), leaf(11), torch.randint(11, (tokens,), generator=generator)


def gradients(found: TokenLogprobs, leaves: list[torch.Tensor], seed: int, unit: bool = True) -> list[torch.Tensor]:
    """Of a random weighting of all outputs, with or without the log-probs at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    outputs = [one for one in (found if unit else (found.logprobs, found.entropy)) if one is not None]
    total = sum((one * torch.randn(len(one), generator=generator, dtype=torch.float64)).sum() for one in outputs)
    return list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("compiled", [False, True], ids=["by blocks", "as compiled on CUDA"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 9),
    chunk=st.integers(1, 12),
    temperature=st.sampled_from([1.0, 0.5, 1.7]),
    form=st.sampled_from(FORMS),
    entropy=st.booleans(),
    with_bias=st.booleans(),
    unit=st.booleans(),
)
def test_values_and_gradients_equal_those_of_whole_logits(
    compiled: bool,
    seed: int,
    tokens: int,
    chunk: int,
    temperature: float,
    form: HeadForm,
    entropy: bool,
    with_bias: bool,
    unit: bool,
):
    hidden, weight, bias, targets = problem(seed, tokens)
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    with patch("shoal.algorithms.logprobs.compiles", return_value=compiled):
        found = chunked_logprobs(
            hidden,
            weight,
            bias if with_bias else None,
            targets,
            temperature=temperature,
            chunk=chunk,
            form=form,
            entropy=entropy,
        )
        mine_all = gradients(found, leaves, seed, unit)
    logits = form.apply(hidden @ weight.t() + (bias if with_bias else 0.0))
    expected = logprobs_of_logits(logits, targets, temperature, entropy)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(mine_all, gradients(expected, leaves, seed, unit), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_golden_values_of_two_words():
    # Logits are 0 and ln 3. T = 1: p = 1/4, 3/4. T = 1/2: ratio 9, so p = 1/10, 9/10.
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [torch.tensor(3.0).log()]])
    found = chunked_logprobs(hidden, weight, None, torch.tensor([1]), temperature=0.5, entropy=True)
    assert found.logprobs.exp().item() == pytest.approx(0.9)
    assert found.unit_logprobs.exp().item() == pytest.approx(0.75)
    # H = -(0.1 ln 0.1 + 0.9 ln 0.9) = 0.230259 + 0.094824
    assert found.entropy is not None
    assert found.entropy.item() == pytest.approx(0.325083, abs=1e-6)


def test_at_temperature_one_both_logprobs_are_the_same_tensor():
    hidden, weight, _, targets = problem(0, 3)
    found = chunked_logprobs(hidden, weight, None, targets)
    assert found.unit_logprobs is found.logprobs
    assert found.entropy is None


def test_sixteen_bit_inputs_give_float32_logprobs_and_gradients_of_their_own_dtype():
    hidden, weight, bias, targets = problem(1, 6, torch.bfloat16)
    found = chunked_logprobs(hidden, weight, bias, targets, chunk=4)
    assert found.logprobs.dtype == torch.float32
    expected = logprobs_of_logits((hidden @ weight.t()).float() + bias.float(), targets)
    torch.testing.assert_close(found.logprobs, expected.logprobs)
    found.logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_a_frozen_head_gets_no_gradient_but_passes_it_on():
    hidden, weight, _, targets = problem(2, 4)
    frozen = weight.detach()
    chunked_logprobs(hidden, frozen, None, targets).logprobs.sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


def test_no_tensor_of_tokens_by_vocabulary_is_made():
    largest = 0
    tokens, vocabulary, chunk = 64, 300, 8
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else [out]:
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return out

    with Watch():
        found = chunked_logprobs(hidden, weight, None, torch.zeros(tokens, dtype=torch.long), chunk=chunk, entropy=True)
        (found.logprobs.sum() + found.entropy.sum()).backward()  # type: ignore[union-attr]
    assert largest == max(chunk * vocabulary, vocabulary * 4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_values_taken_twice_are_equal_and_their_gradients_add_up(temperature: float):
    hidden, weight, _, targets = problem(3, 4)
    twice = torch.tensor([2, 0, 2, 3, 1, 0])
    found = chunked_logprobs(hidden, weight, None, targets, temperature=temperature, entropy=True).take(twice)
    assert (found.unit_logprobs is found.logprobs) == (temperature == 1.0)
    expected = logprobs_of_logits((hidden @ weight.T)[twice], targets[twice], temperature, entropy=True)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(*(gradients(one, [hidden, weight], seed=0) for one in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)
