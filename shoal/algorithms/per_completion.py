"""Sums and means over the tokens of each completion, given back to every token."""

from __future__ import annotations

from torch import Tensor

from shoal.algorithms.terms import TokenTerms


def completion_sum(values: Tensor, terms: TokenTerms) -> Tensor:
    """The sum of `values` [N] over each completion's tokens, given back to every one of its tokens, [N]."""
    return values.new_zeros(terms.num_completions).index_add(0, terms.completion, values)[terms.completion]


def completion_mean(values: Tensor, terms: TokenTerms) -> Tensor:
    """The mean of `values` [N] over each completion's tokens, given back to every one of its tokens, [N]."""
    return completion_sum(values, terms) / completion_sum(values.new_ones(values.shape), terms)
