"""Random loss terms for the tests of the algorithms."""

from collections.abc import Callable, Sequence

import pytest
import torch

from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig

MakeTerms = Callable[..., TokenTerms]
MAX_NEW_TOKENS = 9


def weights_of(lengths: Sequence[int], aggregation: str) -> torch.Tensor:
    """The normaliser of each token, written out independently of the code under test."""
    per_token = {
        "token": lambda length: 1 / sum(lengths),
        "sequence": lambda length: 1 / (length * len(lengths)),
        "constant": lambda length: 1 / (len(lengths) * MAX_NEW_TOKENS),
    }[aggregation]
    return torch.cat([torch.full((length,), per_token(length), dtype=torch.float64) for length in lengths])


def random_terms(seed: int, lengths: Sequence[int], aggregation: str = "token", spread: float = 0.5) -> TokenTerms:
    """Terms of completions with these lengths, float64; `logprobs` and `unit_logprobs` are leaves with gradient."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)

    def noise() -> torch.Tensor:
        return torch.randn(total, generator=generator, dtype=torch.float64) * spread

    logprobs = -torch.rand(total, generator=generator, dtype=torch.float64) * 4 - 0.1
    completion = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    return TokenTerms(
        logprobs=logprobs.clone().requires_grad_(),
        old_logprobs=logprobs + noise(),
        sampler_logprobs=logprobs + noise(),
        advantages=advantages[completion],
        weights=weights_of(lengths, aggregation),
        completion=completion,
        num_completions=len(lengths),
        unit_logprobs=(logprobs + 0.1 * noise()).requires_grad_(),
        ref_logprobs=logprobs + noise(),
        entropy=(torch.rand(total, generator=generator, dtype=torch.float64) * 2).requires_grad_(),
    )


def everything(**changes: object) -> AlgorithmConfig:
    """A configuration with every term of the loss switched on."""
    defaults = {"kl_coef": 0.3, "sampler_kl_coef": 0.2, "entropy_coef": 0.1, "correction": "token_truncate"}
    return AlgorithmConfig(**{**defaults, **changes})


@pytest.fixture(scope="session")
def make_terms() -> MakeTerms:
    return random_terms


@pytest.fixture(scope="session")
def make_config() -> Callable[..., AlgorithmConfig]:
    return everything
