"""The built-in engine: continuous batching over the learner's own module, on any device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.algorithms.precision import widest_float
from shoal.engines.base import Engine, EngineOutput, Request, SamplingParams, check_request
from shoal.engines.builtin.cache import KVCache
from shoal.engines.builtin.decode import Decoder
from shoal.engines.builtin.lanes import Lanes, compact, fork
from shoal.engines.builtin.queue import Queue
from shoal.engines.builtin.rows import Rows, Running
from shoal.engines.builtin.sampling import RowSampling, sample
from shoal.engines.builtin.scoring import score
from shoal.engines.builtin.select import choose_decoder
from shoal.engines.seeds import uniforms
from shoal.engines.stopping import StopStrings, eos_ids
from shoal.types import Segment, StopReason

logger = getLogger(__name__)

# Lanes come and go by so many at a time: each number of them that is new to oneDNN costs it the making of kernels,
# which takes longer than a step of a small model.
LANE_MULTIPLE = 16
PREFILL_TOKENS = 2**14  # of one prefill pass, padding included


@dataclass
class Prefix:
    """A prefilled prompt, with the logits [1, 1, V] after it, that requests in the queue still wait for."""

    prompt: tuple[int, ...]
    cache: KVCache
    logits: Tensor


class TorchEngine(Engine):
    """Samples from a Hugging Face causal language model, possibly wrapped by PEFT, that the learner trains.

    Prompts are prefilled once, however many requests have them, and completions of a prompt are decoded as one, in one
    lane of the KV cache, until they differ. Lanes whose completions ended are dropped and queued requests take their
    places. A completion's random numbers depend on its seed and the token's index only.

    Args:
        model: Any AutoModelForCausalLM with a KV cache.
        tokenizer: Its tokenizer; gives an end-of-sequence id and finds stop strings.
        max_batch: Most completions decoded at a time.
        max_cache_tokens: Most tokens, padding included, that the KV cache holds; 0 for no bound but `max_batch`.
        compute_dtype: Dtype of matrix products where it differs from the parameters'.

    Raises:
        ConfigError: the model cannot be decoded with a KV cache.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch: int,
        max_cache_tokens: int = 0,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.max_batch = max_batch
        self.max_cache_tokens = max_cache_tokens
        self.max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        self.vocabulary = model.config.get_text_config().vocab_size
        self.stops = StopStrings(tokenizer)
        self.decoder: Decoder = choose_decoder(model, compute_dtype)
        self.device = self.decoder.device
        eos = eos_ids(model, tokenizer)
        self.ends = np.zeros(max(eos, default=0) + 1, dtype=bool)
        self.ends[eos] = True
        self.queue = Queue()
        self.rows = Rows()
        self.ready: deque[EngineOutput] = deque()
        self.cache: KVCache | None = None
        self._reset_cache()
        self._reset_statistics()

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion."""
        return self.max_positions

    def refresh(self, version: int) -> None:
        """Takes the weights as they are now for `version` and drops all that was derived from the old ones.

        Completions in flight go on with the keys and values that the old weights gave them; their `versions` tell.
        """
        self.version = version
        self.decoder.refresh()
        self.prefix: Prefix | None = None
        for running, count, alive in zip(self.rows.running, self.rows.counts, self.rows.alive, strict=True):
            if alive:
                running.stamp(int(count), version)

    def recompute(self) -> None:
        """Runs what completions in flight have so far once more by the weights of now: their next tokens then follow
        keys and values of these weights alone. Tokens and log-probs that were sampled stay as they are."""
        self._drop_dead_rows()
        if not len(self.rows):
            self.cache = None
            return
        rows = self.rows
        held = [
            (*running.request.prompt_ids, *tokens[: count - 1])
            for running, tokens, count in zip(rows.running, rows.tokens.tolist(), rows.counts, strict=True)
        ]
        # Completions of one lane have the same newest token too, which is not in the cache.
        places: dict[tuple[tuple[int, ...], int], int] = {}
        rows.lanes = np.array(
            [places.setdefault((ids, int(newest)), len(places)) for ids, newest in zip(held, rows.newest, strict=True)],
            dtype=np.int64,
        )
        sequences = [list(ids) for ids, _ in places]
        longest, ahead = int(rows.lengths.max()), int(rows.remaining.max())
        at_once = max(PREFILL_TOKENS // longest, 1)
        with self.decoder.running():
            cache = self.decoder.lane_cache(*self._size(len(rows), longest + ahead, ahead))
            cache.end = longest
            for first in range(0, len(sequences), at_once):
                part = sequences[first : first + at_once]
                prefilled, _ = self.decoder.prefill(part)
                cache.append(prefilled, torch.arange(len(part), device=self.device))
            self.cache = cache
            self._use_lanes()
        self.prefill_tokens += sum(map(len, sequences))

    def in_flight_counts(self) -> dict[str, int]:
        """Tokens sampled so far of every request that has not ended, by id."""
        counts = {request.id: 0 for request in self.queue}
        for running, count, alive in zip(self.rows.running, self.rows.counts, self.rows.alive, strict=True):
            if alive:
                counts[running.request.id] = int(count)
        return counts

    def submit(self, requests: Sequence[Request]) -> None:
        known = {row.request.id for row, alive in zip(self.rows.running, self.rows.alive, strict=True) if alive}
        known |= {output.request_id for output in self.ready}
        for request in requests:
            self._check(request)
            if request.id in known or request.id in self.queue:
                raise ValueError(f"request {request.id}: this id is queued already; ids must differ")
        if len({request.id for request in requests}) < len(requests):
            raise ValueError("two of the requests have the same id; ids must differ")
        for request in requests:
            self.queue.add(request)

    def _check(self, request: Request) -> None:
        check_request(request, self.max_positions, "positions; shorten it")
        prompt = len(request.prompt_ids)
        if self.max_cache_tokens and prompt + self._limit(request) > self.max_cache_tokens:
            raise ValueError(
                f"request {request.id}: {prompt} prompt tokens and {self._limit(request)} new ones do not fit "
                f"engine.max_cache_tokens={self.max_cache_tokens}"
            )

    def _limit(self, request: Request) -> int:
        """Most tokens to sample: what is asked for, within the model's positions."""
        return min(request.sampling.max_new_tokens, self.max_positions - len(request.prompt_ids))

    @property
    def in_flight(self) -> int:
        return len(self.ready) + len(self.queue) + int(self.rows.alive.sum())

    @property
    def busy(self) -> bool:
        """Whether anything is queued, running or finished and not given out."""
        return bool(self.ready or self.queue or self.rows.alive.any())

    def poll(self, timeout: float) -> list[EngineOutput]:
        """Decodes until an output is there, or `timeout` seconds have gone by."""
        if self.busy and not self.ready:
            self._run(timeout)
        finished = list(self.ready)
        self.ready.clear()
        if not self.busy:
            self._reset_cache()
        return finished

    def _run(self, seconds: float) -> None:
        start = perf_counter()
        with self.decoder.running():
            while not self.ready:
                self._step()
                if perf_counter() - start >= seconds:
                    break
        self.seconds += perf_counter() - start

    def abort(self, ids: Sequence[str]) -> None:
        wanted = set(ids)
        for request in self.queue.remove(wanted):
            self.ready.append(EngineOutput(request.id, [], [], StopReason.ABORT))
        for row, running in enumerate(self.rows.running):
            if self.rows.alive[row] and running.request.id in wanted:
                self.ready.append(self.rows.finish(row, StopReason.ABORT))

    def statistics(self) -> dict[str, float]:
        """Counters since the last call.

        `tokens` sampled; `prefill_tokens` of prompts run, each shared prompt once; `seconds` spent on both; `steps`
        of decoding; `mean_rows` completions running and `mean_lanes` lanes computed over decoding steps;
        `tokens_per_second` sampled.
        """
        found = {
            "tokens": float(self.sampled_tokens),
            "prefill_tokens": float(self.prefill_tokens),
            "seconds": self.seconds,
            "steps": float(self.steps),
            "mean_rows": self.living_rows / max(self.steps, 1),
            "mean_lanes": self.decoded_lanes / max(self.steps, 1),
            "tokens_per_second": self.sampled_tokens / self.seconds if self.seconds else 0.0,
        }
        self._reset_statistics()
        return found

    def close(self) -> None:
        self._reset_cache()
        self.decoder.refresh()

    def _reset_statistics(self) -> None:
        self.sampled_tokens = self.prefill_tokens = self.steps = self.living_rows = self.decoded_lanes = 0
        self.seconds = 0.0

    def _reset_cache(self) -> None:
        self.rows = Rows()
        self.prefix = None
        self.decoder.release(self.cache)
        self.cache = None

    # One step: fill free places, decode one token for each lane, end what is complete.

    def _step(self) -> None:
        self._drop_dead_rows(LANE_MULTIPLE)
        if self.queue and self._worth_admitting():
            self._admit()
            if self.ready:
                return
        if self.rows.alive.any():
            self._decode()

    def _drop_dead_rows(self, multiple: int = 1) -> None:
        """Drops rows whose completion ended, where these are `multiple` or more."""
        if len(self.rows) - int(self.rows.alive.sum()) >= multiple:
            self.rows.compact()
            self._set_sampling()

    def _drop_idle_lanes(self, multiple: int = 1) -> None:
        """Drops lanes without a living completion, where these are `multiple` or more."""
        cache = self.cache
        if cache is None:
            return
        lanes = self.rows.lanes[self.rows.alive]
        if cache.rows - len(np.unique(lanes)) >= multiple:
            self._arrange(compact(self.rows.lanes, self.rows.alive, cache.rows, multiple=multiple))

    def _arrange(self, arranged: Lanes) -> None:
        assert self.cache is not None
        sources, targets = (torch.from_numpy(places).to(self.device) for places in (arranged.sources, arranged.targets))
        self.cache.arrange(sources, targets, arranged.size)
        self.rows.lanes = arranged.lanes
        self._use_lanes()

    def _use_lanes(self) -> None:
        """Tells the cache where its lanes begin and which of them matter."""
        cache = self.cache
        assert cache is not None
        living = self.rows.lanes[self.rows.alive]
        first = cache.end - self.rows.lengths[self.rows.alive]
        low = int(first.min(initial=cache.end))
        starts = np.full(cache.rows, low)
        starts[living] = first
        cache.use(torch.from_numpy(starts).to(self.device), low, torch.from_numpy(np.unique(living)).to(self.device))

    def _set_sampling(self) -> None:
        """The rows' sampling parameters as tensors."""
        self.sampling = RowSampling.of([row.request.sampling for row in self.rows.running], self.device)
        self.with_stops = np.array([bool(row.request.sampling.stop) for row in self.rows.running], dtype=bool)

    def _worth_admitting(self) -> bool:
        """A prefill for a single free place would cost more than leaving it empty for a few steps."""
        free = self.max_batch - int(self.rows.alive.sum())
        return free >= min(len(self.queue), max(1, self.max_batch // 8))

    def _admit(self) -> None:
        """Moves as many requests as fit from the queue to the rows and samples their first tokens."""
        self._drop_dead_rows()
        self._drop_idle_lanes()
        chosen = self._choose()
        if not chosen:
            return
        self._make_room(chosen)
        held = [request for request in chosen if self.prefix is not None and request.prompt_ids == self.prefix.prompt]
        if held and self.prefix is not None:
            self._start(held, self.prefix.cache, self.prefix.logits, [0] * len(held))
        fresh = chosen[len(held) :]
        prompts = {prompt: row for row, prompt in enumerate(dict.fromkeys(request.prompt_ids for request in fresh))}
        if fresh:
            cache, logits = self.decoder.prefill([list(prompt) for prompt in prompts])
            self.prefill_tokens += sum(len(prompt) for prompt in prompts)
            self._start(fresh, cache, logits, [prompts[request.prompt_ids] for request in fresh])
        following = self.queue.first_prompt()
        if following in prompts:
            row = prompts[following]
            self.prefix = Prefix(following, cache.row(row), logits[row : row + 1])
        elif self.prefix is not None and following != self.prefix.prompt:
            self.prefix = None

    def _choose(self) -> list[Request]:
        """Takes the requests from the queue that fit beside the rows, and into one prefill pass."""
        length, ahead = int(self.rows.lengths.max(initial=0)), int(self.rows.remaining.max(initial=0))
        prompts: set[tuple[int, ...]] = set()
        width = count = 0
        for request in self.queue:
            width = max(width, len(request.prompt_ids))
            prompts.add(request.prompt_ids)
            length, ahead = max(length, len(request.prompt_ids)), max(ahead, self._limit(request))
            rows = len(self.rows) + count + 1
            if len(prompts) > 1 and len(prompts) * width > PREFILL_TOKENS:
                break
            if rows > self.max_batch or self._exceeds(rows, length + ahead):
                break
            count += 1
        return self.queue.take(count)

    def _exceeds(self, rows: int, columns: int) -> bool:
        return 0 < self.max_cache_tokens < rows * columns

    def _make_room(self, chosen: Sequence[Request]) -> None:
        """Sees to it that the cache can hold the rows and the chosen requests until all are complete."""
        longest = max([*self.rows.lengths.tolist(), *(len(request.prompt_ids) for request in chosen)])
        ahead = max([*self.rows.remaining.tolist(), *(self._limit(request) for request in chosen)])
        rows, columns = len(self.rows) + len(chosen), longest + ahead
        if self.cache is None:
            self.cache = self.decoder.lane_cache(*self._size(rows, columns, ahead))
            self.cache.end = longest
        cache = self.cache
        if rows > cache.capacity or longest > cache.end or cache.end + ahead > cache.columns:
            cache.resize(*self._size(rows, columns, ahead), end=longest)

    def _size(self, rows: int, columns: int, ahead: int) -> tuple[int, int]:
        """Rows and columns to allocate: with room to grow where the cache is not bounded, so that it seldom moves."""
        if self.max_cache_tokens:
            return rows, columns
        spare = ahead if self.queue else 0
        return min(self.max_batch, rows + len(self.queue)), columns + spare

    def _start(self, requests: Sequence[Request], cache: KVCache, logits: Tensor, index: list[int]) -> None:
        """Adds rows for requests whose prompts are the rows `index` of a prefilled cache, a lane for each prompt."""
        assert self.cache is not None
        self._drop_idle_lanes()
        prompts, lane = np.unique(index, return_inverse=True)
        before, first = self.cache.rows, len(self.rows)
        self.cache.append(cache, torch.from_numpy(prompts).to(self.device), fork=len(prompts) < len(index))
        running = [Running(request, self._limit(request), [(0, self.version)]) for request in requests]
        self.rows.add(running, before + lane)
        self._use_lanes()
        self._set_sampling()
        self._take(logits[torch.tensor(index, device=self.device), -1], first)

    def _decode(self) -> None:
        """Feeds each lane the newest token of its completions and samples the next of each."""
        self._drop_idle_lanes(LANE_MULTIPLE)
        cache, rows = self.cache, self.rows
        assert cache is not None
        newest = np.zeros(cache.rows, dtype=np.int64)
        newest[rows.lanes[rows.alive]] = rows.newest[rows.alive]
        if self.decoder.at_once > 1 and len(np.unique(rows.lanes[rows.alive])) == int(rows.alive.sum()):
            self._decode_ahead(cache, torch.from_numpy(newest))
            return
        logits = self.decoder.forward(torch.from_numpy(newest).to(self.device)[:, None], cache)[:, -1]
        self.steps += 1
        self.living_rows += int(rows.alive.sum())
        self.decoded_lanes += cache.rows
        self._take(logits.index_select(0, torch.from_numpy(rows.lanes).to(self.device)), 0)

    def _decode_ahead(self, cache: KVCache, newest: Tensor) -> None:
        """Several steps before anything is looked at, each completion in a lane of its own; `newest` [lanes]."""
        rows = self.rows
        count = min(self.decoder.at_once, int(rows.remaining.max()))
        lanes = rows.lanes[rows.alive]
        seeds, counts = np.zeros((2, cache.rows), dtype=np.uint64)
        seeds[lanes], counts[lanes] = rows.seeds[rows.alive], rows.counts[rows.alive]
        drawn = torch.from_numpy(uniforms(seeds[None], counts + np.arange(count, dtype=np.uint64)[:, None]))
        sampling = [SamplingParams(1)] * cache.rows
        for row, lane in zip(np.flatnonzero(rows.alive).tolist(), lanes.tolist(), strict=True):
            sampling[lane] = rows.running[row].request.sampling
        tokens, logprobs = (found.cpu().numpy() for found in self.decoder.steps(newest, drawn, sampling, cache))
        self.steps += count
        self.decoded_lanes += count * cache.rows
        for step in range(count):
            if not rows.alive.any():
                break
            self.living_rows += int(rows.alive.sum())
            self._note(tokens[step, rows.lanes], logprobs[step, rows.lanes], 0)

    def _take(self, logits: Tensor, first: int) -> None:
        """Samples a token for each row from `first` on, by logits [R, V], ends the completions that it ends, and parts
        those that went on together till now."""
        rows = self.rows
        uniform = torch.from_numpy(uniforms(rows.seeds[first:], rows.counts[first:].astype(np.uint64)))
        sampling = self.sampling
        if first:
            sampling = RowSampling.of([row.request.sampling for row in rows.running[first:]], self.device)
        chosen, logprobs = sample(logits, uniform_to(uniform, self.device), sampling)
        self._note(chosen.cpu().numpy(), logprobs.cpu().numpy(), first)
        assert self.cache is not None
        most = min(len(rows), self.cache.capacity)
        # A decoder that runs ahead cannot part completions on its way: each has a lane of its own from the start.
        differing = rows.newest if self.decoder.at_once == 1 else np.arange(len(rows))
        forked = fork(rows.lanes, differing, rows.alive, self.cache.rows, multiple=LANE_MULTIPLE, capacity=most)
        if forked is not None:
            self._arrange(forked)

    def _note(self, tokens: NDArray[np.int64], logprobs: NDArray[np.float32], first: int) -> None:
        """Records a token of each living row from `first` on, and ends the completions that it ends."""
        rows = self.rows
        self.sampled_tokens += int(rows.alive[first:].sum())
        rows.record(first, tokens, logprobs)
        ended = rows.alive.copy()
        ended[:first] = False
        ended[first:] &= self._ends(tokens)
        for row in first + np.flatnonzero(self.with_stops[first:] & rows.alive[first:] & ~ended[first:]):
            stop = rows.running[row].request.sampling.stop
            ended[row] = self.stops.found(stop, rows.tokens[row, : rows.counts[row]].tolist())
        full = rows.alive & (rows.counts >= rows.limits)
        for row in np.flatnonzero(ended | full):
            self.ready.append(rows.finish(row, StopReason.STOP if ended[row] else StopReason.LENGTH))

    def _ends(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tokens are end-of-sequence ids."""
        return (tokens < len(self.ends)) & self.ends[np.minimum(tokens, len(self.ends) - 1)]

    def next_token(self, prompt_ids: Sequence[int], seed: int = 0) -> tuple[int, float]:
        """One token sampled at temperature 1 and its log-prob, at once, whatever is queued."""
        with self.decoder.running():
            _, logits = self.decoder.prefill([list(prompt_ids)])
            uniform = torch.from_numpy(uniforms(np.array([seed], dtype=np.uint64), np.zeros(1, dtype=np.uint64)))
            plain = RowSampling(None, None, None, None, None)
            token, logprob = sample(logits[:, -1], uniform_to(uniform, self.device), plain)
        return int(token), float(logprob)

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        """Log-probs by the decoder that samples, so that a stale copy of a weight shows.

        Raises:
            ValueError: a segment has no context, or the temperature is not above 0.
        """
        if temperature <= 0:
            raise ValueError(f"log-probs at temperature {temperature}: it must be above 0")
        if any(not segment.context_ids for segment in segments):
            raise ValueError("log-probs of a segment without context: its first token has no distribution")
        with self.decoder.running():
            return score(self.decoder, segments, temperature, self.vocabulary)


def uniform_to(values: Tensor, device: torch.device) -> Tensor:
    """Uniform numbers, as wide as the device has them."""
    return values.to(widest_float(device)).to(device)
