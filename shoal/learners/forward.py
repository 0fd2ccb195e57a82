"""From a micro-batch to log-probs, for any model: masks, the decoder, the head in chunks."""

from __future__ import annotations

from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from shoal.algorithms.logprobs import HeadForm, TokenLogprobs, chunked_logprobs, logprobs_of_logits
from shoal.algorithms.masks import additive, allowed, cumulative_lengths
from shoal.algorithms.micro_batch import MicroBatch
from shoal.errors import ConfigError
from shoal.learners.cpu.mixed import forward_context
from shoal.learners.cpu.tree_attention import LONGEST, NAME, TreeLayout
from shoal.learners.model import Policy
from shoal.runtime import Runtime

logger = getLogger(__name__)

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


class LogprobHead(nn.Module):
    """A model's head, whose weights it shares, applied to a chunk of tokens at a time.

    It is a module because DeepSpeed gathers sharded weights where a module is called, and gives plain tensors since
    it follows nothing else.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = getattr(head, "weight", None)
        self.bias: nn.Parameter | None = getattr(head, "bias", None)

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
        form: HeadForm,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probs, those at temperature 1 where that is another one, entropies where they are asked for; [N] each."""
        assert self.weight is not None
        found = chunked_logprobs(
            hidden, self.weight, self.bias, targets, temperature=temperature, chunk=chunk, form=form, entropy=entropy
        )
        return found.logprobs, None if found.unit_logprobs is found.logprobs else found.unit_logprobs, found.entropy


class PolicyForward:
    """Runs a policy on micro-batches. What the model can do is found out once, by trying it on a few tokens."""

    def __init__(self, policy: Policy, runtime: Runtime, chunk: int, head: LogprobHead | None = None) -> None:
        """`head` is the policy's head as a module that is part of a larger one; None: made here."""
        self.policy = policy
        self.runtime = runtime
        self.chunk = chunk
        self.config = policy.causal_lm.config.get_text_config()
        self.attention: str = self.config._attn_implementation
        self.decoder = policy.causal_lm.get_decoder()
        self.head = policy.causal_lm.get_output_embeddings()
        self.form: HeadForm | None = head_form(self.config) if isinstance(self.head, nn.Linear) else None
        self.logprob_head = head or LogprobHead(self.head)
        if self.form is not None and not self._head_is_known():
            self.form = None
        if self.form is None:
            logger.warning(
                "%s has a head of an unknown form: log-probs come from its whole logits, which takes more memory",
                type(policy.causal_lm).__name__,
            )

    def __call__(self, batch: MicroBatch, temperature: float = 1.0, entropy: bool = False) -> TokenLogprobs:
        """Log-probs of the micro-batch's N trained tokens, at its own temperature where it has one. Gradients and
        dropout are the caller's business."""
        temperature = temperature if batch.temperature is None else batch.temperature
        # Sequences that begin alike have predictions in common.
        source, targets = batch.source, batch.targets
        if batch.distinct is not None:
            source, targets = source[batch.distinct], targets[batch.distinct]
        found = self._logprobs(batch, source, targets, temperature, entropy)
        return found if batch.entry is None else found.take(batch.entry)

    def _logprobs(
        self, batch: MicroBatch, source: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> TokenLogprobs:
        """Log-probs of `targets` [D], predicted at the places `source` [D]."""
        inputs = self.attention_inputs(batch)
        with forward_context(self.runtime):
            if self.form is None:
                logits = self.policy.causal_lm(input_ids=batch.input_ids, use_cache=False, **inputs).logits
                return logprobs_of_logits(logits.flatten(0, 1)[source], targets, temperature, entropy)
            hidden = self.hidden(batch.input_ids, inputs).flatten(0, 1).index_select(0, source)
        logprobs, unit, entropies = self.logprob_head(
            self._head_input(hidden), targets, temperature, self.chunk, self.form, entropy
        )
        return TokenLogprobs(logprobs, logprobs if unit is None else unit, entropies)

    def hidden(self, input_ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The decoder's last hidden states, [R, L, H]."""
        return self.decoder(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state

    def _head_input(self, hidden: Tensor) -> Tensor:
        """Under autocast the head multiplies in 16 bits too; its sums stay in float32."""
        if self.runtime.device.type == "cpu" or self.runtime.compute_dtype is None:
            return hidden.to(self.head.weight.dtype)
        return hidden.to(self.runtime.compute_dtype)

    def attention_inputs(self, batch: MicroBatch) -> dict[str, Any]:
        """Positions and masks in the form that the model's attention implementation takes."""
        if batch.plain:
            return {"position_ids": batch.position_ids, "attention_mask": None}
        if self.attention == "flash_attention_2":
            bounds, longest = cumulative_lengths(batch)
            lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
            return {
                "position_ids": batch.position_ids,
                "attention_mask": None,
                **lengths,
                "max_length_q": longest,
                "max_length_k": longest,
            }
        if self.attention == NAME and int(batch.position_ids.max()) < LONGEST:
            unused = torch.zeros(1, 1, 1, 1, dtype=torch.bool)  # with None the model would make a mask of its own
            return {"position_ids": batch.position_ids, "attention_mask": unused, "trees": TreeLayout(batch)}
        if batch.spans is not None:
            unused = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=batch.until.device)
            return {"position_ids": batch.position_ids, "attention_mask": unused, "spans": batch.spans}
        masks = {
            kind: self._mask(batch, self.config.sliding_window if kind == "sliding_attention" else None)
            for kind in layer_kinds(self.config)
        }
        # Models with layers of several kinds take a mask for each; the others take the mask itself, or either.
        mask = masks if getattr(self.config, "layer_types", None) else next(iter(masks.values()))
        return {"position_ids": batch.position_ids, "attention_mask": mask}

    def _mask(self, batch: MicroBatch, window: int | None) -> Tensor:
        mask = allowed(batch, window)
        return additive(mask, self.decoder.dtype) if self.attention == "eager" else mask

    @torch.no_grad()
    def _head_is_known(self) -> bool:
        """Compares the logits computed here with the model's own on a few tokens."""
        assert self.form is not None
        self.policy.model.eval()
        ids = torch.arange(min(8, self.policy.vocabulary), device=self.runtime.device)[None]
        with forward_context(self.runtime):
            theirs = self.policy.causal_lm(input_ids=ids, use_cache=False).logits.float()
            hidden = self.hidden(ids, {}).to(self.head.weight.dtype)
            mine = self.form.apply(self.head(hidden).float())
        return torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max() + 1e-6))

    @torch.no_grad()
    def check_packing(self, packed: MicroBatch, padded: MicroBatch) -> float:
        """The largest difference between a packed and a padded layout's log-probs of the same tokens, in nats, and
        relative to those beyond -1."""
        self.policy.model.eval()
        values = []
        for batch in (packed, padded):
            found = self(batch.to(self.runtime.device)).logprobs.cpu()
            order = torch.argsort(batch.sequence * (int(batch.token.max()) + 1) + batch.token)
            values.append(found[order])
        # Relative to log-probs beyond -1: rounding grows with them.
        return float(((values[0] - values[1]).abs() / values[1].abs().clamp(min=1)).max())


def head_form(config: Any) -> HeadForm:
    """The head's form by the names that model configurations use for it (Cohere, Granite, Gemma)."""
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return HeadForm(scale / divisor, getattr(config, "final_logit_softcapping", None))


def layer_kinds(config: Any) -> list[str]:
    """The kinds of attention layers, each once."""
    named = getattr(config, "layer_types", None)
    if named:
        return sorted(set(named))
    return ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]


def packing_obstacle(config: Any) -> str | None:
    """Why this model cannot be packed, or None: a layer that carries a state over the whole row."""
    others = sorted(set(layer_kinds(config)) - PACKABLE_LAYERS)
    return f"it has {', '.join(others)} layers" if others else None


def refuse_packing(name: str, reason: str) -> ConfigError:
    """The error for learner.packing=on where it cannot work."""
    return ConfigError(f"learner.packing=on: {name} cannot be packed ({reason}); use auto or off")
