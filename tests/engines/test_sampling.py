"""Random numbers by seed and index, and what is drawn with them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.algorithms.logprobs import logprobs_of_logits
from shoal.engines.base import SamplingParams
from shoal.engines.builtin.sampling import RowSampling, draw, draw_by_blocks, sample, softmax, truncate
from shoal.engines.builtin.scoring import score
from shoal.engines.seeds import sampling_seed, uniforms
from shoal.types import Segment

CPU = torch.device("cpu")


def uniform(seeds: list[int], indices: list[int]) -> np.ndarray:
    return uniforms(np.array(seeds, dtype=np.uint64), np.array(indices, dtype=np.uint64))


def test_a_sampling_seed_has_63_bits_and_depends_on_every_part() -> None:
    parts = [(0, "a", 0, 0, 0), (1, "a", 0, 0, 0), (0, "b", 0, 0, 0), (0, "a", 1, 0, 0), (0, "a", 0, 1, 0)]
    parts += [(0, "a", 0, 0, 1), (0, "a/0", 0, 0, 0), (0, "1/a", 0, 0, 0)]
    seeds = [sampling_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # blake2b of "7/4/gsm8/2/3/1", 8 bytes, little-endian, without its last bit: it must be the same for ever.
    assert sampling_seed(7, "gsm8", 2, 3, 1) == 8664215546030710472


@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000), st.integers(1, 20))
def test_a_uniform_number_depends_on_its_seed_and_index_only(seed: int, index: int, others: int) -> None:
    alone = uniform([seed], [index])[0]
    row = uniform([*range(others), seed], [*range(others), index])[-1]
    assert alone == row
    assert 0 <= alone < 1


def test_uniform_numbers_are_spread_evenly_over_indices_and_over_neighbouring_seeds() -> None:
    for numbers in (uniform([5] * 10_000, list(range(10_000))), uniform(list(range(10_000)), [3] * 10_000)):
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        # chi-square with 19 degrees of freedom: 43.8 is exceeded once in a thousand.
        assert ((counts - 500) ** 2 / 500).sum() < 43.8
    streams = uniform([8] * 5000 + [9] * 5000, [*range(5000)] * 2).reshape(2, 5000)
    assert abs(np.corrcoef(streams)[0, 1]) < 0.05
    assert abs(np.corrcoef(streams[0, 1:], streams[1, :-1])[0, 1]) < 0.05


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=30).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_the_drawn_token_is_the_one_whose_interval_holds_the_number(weights: list[int], number: float) -> None:
    probabilities = torch.tensor([weights], dtype=torch.float32) / sum(weights)
    token = int(draw(probabilities, torch.tensor([number], dtype=torch.float64)))
    assert weights[token] > 0
    edges = probabilities.double().cumsum(-1)[0] / probabilities.double().sum()
    assert edges[token] - probabilities[0, token] - 1e-6 <= number <= edges[token] + 1e-6


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_interval_never_draw_an_impossible_token(number: float) -> None:
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    assert int(draw(probabilities, torch.tensor([number], dtype=torch.float64))) == (1 if number == 0 else 3)


def test_sampled_frequencies_match_the_probabilities() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -3.0])
    count = 20_000
    numbers = torch.from_numpy(uniform([11] * count, list(range(count))))
    rows = RowSampling.of([SamplingParams(1, temperature=0.8)] * count, CPU)
    tokens, logprobs = sample(logits.expand(count, -1), numbers, rows)
    expected = (logits / 0.8).softmax(-1)
    counts = torch.bincount(tokens, minlength=6)
    # chi-square with 5 degrees of freedom: 20.5 is exceeded once in a thousand.
    assert float(((counts - count * expected) ** 2 / (count * expected)).sum()) < 20.5
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_truncation_keeps_the_likeliest_tokens_and_renormalises() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]])

    def kept(top_k: int, top_p: float) -> list[float]:
        return truncate(probabilities, torch.tensor([[top_k]]), torch.tensor([[top_p]]))[0].tolist()

    assert kept(2, 1.0) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    # .4 + .3 reach .65, so two tokens make it up.
    assert kept(0, 0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    # Top-k first: of the mass .7 that is left, .4 is 57 %, more than the 50 % asked for.
    assert kept(2, 0.5) == pytest.approx([0, 1, 0, 0])
    assert kept(0, 1e-9) == pytest.approx([0, 1, 0, 0])
    assert kept(0, 1.0) == pytest.approx([0.1, 0.4, 0.2, 0.3])


def test_rows_with_different_parameters_are_sampled_each_by_its_own() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0]).expand(3, -1)
    params = [SamplingParams(1, temperature=0), SamplingParams(1, top_k=2), SamplingParams(1, temperature=2.0)]
    numbers = torch.full((3,), 0.999, dtype=torch.float64)
    tokens, logprobs = sample(logits, numbers, RowSampling.of(params, CPU))
    assert tokens.tolist() == [1, 2, 3]
    expected = [
        logits[0].log_softmax(-1)[1],  # greedy: at temperature 1
        torch.tensor([2.0, 1.0]).log_softmax(-1)[1],
        (logits[0] / 2).log_softmax(-1)[3],
    ]
    assert logprobs.tolist() == pytest.approx([float(value) for value in expected], abs=1e-6)
    for row, param in enumerate(params):
        alone = sample(logits[row : row + 1], numbers[row : row + 1], RowSampling.of([param], CPU))
        assert alone[0].item() == tokens[row].item()
        assert alone[1].item() == logprobs[row].item()


@pytest.mark.parametrize("vocabulary", [49_152, 262_144])
def test_log_probs_of_a_large_vocabulary_are_not_biased(vocabulary: int) -> None:
    logits = 4 * torch.randn((16, vocabulary), generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(16)
    exact = logits.double().log_softmax(-1)
    sampled, logprobs = sample(logits, torch.full((16,), 0.5), RowSampling.of([SamplingParams(1)] * 16, CPU))
    assert abs(float((logprobs - exact.gather(1, sampled[:, None])[:, 0]).mean())) < 5e-7
    found = logprobs_of_logits(logits, tokens, temperature=1.0, entropy=True)
    assert abs(float((found.logprobs - exact.gather(1, tokens[:, None])[:, 0]).mean())) < 5e-7

    class Fixed:
        """A decoder of the same logits for every prompt."""

        def prefill(self, prompts: list[list[int]], keep: int) -> tuple[None, torch.Tensor]:
            return None, logits[: len(prompts), None].expand(-1, keep, -1)

    segments = [Segment([1], [token], [0.0], [True]) for token in tokens.tolist()]
    [first, *_] = score(Fixed(), segments[:1], 1.0, vocabulary)  # type: ignore[arg-type]
    assert first[0] == pytest.approx(float(exact[0, 0]), abs=1.5e-6)


@given(seed=st.integers(0, 10_000), ids=st.sampled_from([5, 511, 512, 1500, 2048]), share=st.floats(0.0, 0.95))
@settings(max_examples=60, deadline=None)
def test_drawing_by_blocks_draws_the_same_tokens(seed: int, ids: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = softmax(4 * torch.randn(8, ids, generator=generator))
    probabilities[:, : int(share * (ids - 2))] = 0
    probabilities[:, -1] = 0
    uniform = torch.rand(8, generator=generator, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1 - 2.0**-53
    found = draw_by_blocks(probabilities, uniform)
    # At the very end of the distribution the last bit of a sum decides.
    assert torch.equal(found[uniform < 1 - 1e-12], draw(probabilities, uniform)[uniform < 1 - 1e-12])
    assert bool((probabilities.gather(1, found[:, None]) > 0).all())
