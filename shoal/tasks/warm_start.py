"""The built-in model: a tiny Qwen3, taught the format and the arithmetic of the story task by demonstrations."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from json import dumps
from logging import getLogger
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, get_cosine_schedule_with_warmup
from transformers.utils.logging import disable_progress_bar

from shoal.errors import ConfigError
from shoal.files import cache_folder, file_trouble
from shoal.tasks.story import make_demonstration, story_tokenizer

logger = getLogger(__name__)

IGNORED = -100
LOG_EVERY = 50
SAMPLED_FOR_DIGEST = 100

Progress = Callable[[int, int, float], None]
"""Called after every step with (steps done, steps in all, loss)."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the warm-started weights depend on. `version` is raised when the training in here changes."""

    layers: int = 2
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 384
    init_std: float = 0.05  # at the usual 0.02 the arithmetic comes 50 steps later
    steps: int = 250
    batch: int = 64
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 10
    seed: int = 0
    version: int = 1

    @property
    def digest(self) -> str:
        """Names the weights. It covers the vocabulary, and some demonstrations, which change when the task does."""
        random = Random(self.seed)
        demonstrations = [
            f"{problem.question}{answer}"
            for problem, answer in (make_demonstration(random) for _ in range(SAMPLED_FOR_DIGEST))
        ]
        parts = [asdict(self), story_tokenizer().get_vocab(), demonstrations]
        return sha256(dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def warm_started_model(recipe: Recipe | None = None, progress: Progress | None = None) -> Path:
    """The folder of the warm-started model and its tokenizer, for `from_pretrained`; made where it is missing.

    It is made beside its final place and renamed, so that it is whole or absent; of two processes that make it at
    the same time, the first to finish wins. The global random state is left as it was.

    Raises:
        ConfigError: the cache cannot be written.
    """
    recipe = recipe or Recipe()
    folder = cache_folder() / f"story_{recipe.digest}"
    try:
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".writing_", dir=folder.parent))
    except OSError as error:
        raise ConfigError(
            f"the built-in model cannot be kept: {file_trouble(error) or error}; set SHOAL_CACHE to a folder that can "
            "be written"
        ) from error
    logger.info("teaching the built-in model its format: %d steps, once (kept in %s)", recipe.steps, folder)
    start = time.perf_counter()
    try:
        tokenizer = story_tokenizer()
        model = _teach(recipe, tokenizer, progress or _log_progress)
        disable_progress_bar()  # one file of 2 MB
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner reads
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("the built-in model took %.0f s", time.perf_counter() - start)
    return folder


def _log_progress(step: int, steps: int, loss: float) -> None:
    if step % LOG_EVERY == 0:
        logger.info("warm start: step %d of %d, loss %.3f", step, steps, loss)


def _teach(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, progress: Progress) -> Qwen3ForCausalLM:
    random = Random(f"demonstrations/{recipe.seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Qwen3ForCausalLM(architecture(recipe, tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(recipe.warmup_steps, recipe.steps), recipe.steps)
    model.train()
    for step in range(1, recipe.steps + 1):
        ids, labels = _batch(random, tokenizer, recipe.batch)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step, recipe.steps, loss.item())
    return model.eval()


def architecture(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=recipe.init_std,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _batch(random: Random, tokenizer: PreTrainedTokenizerFast, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, [size, longest], padded on the right; only answers and their end are labelled."""
    demonstrations = [make_demonstration(random) for _ in range(size)]
    questions = tokenizer([problem.question for problem, _ in demonstrations])["input_ids"]
    answers = tokenizer([answer + tokenizer.eos_token for _, answer in demonstrations])["input_ids"]
    longest = max(len(question) + len(answer) for question, answer in zip(questions, answers, strict=True))
    ids = torch.full((size, longest), tokenizer.pad_token_id)
    labels = torch.full((size, longest), IGNORED)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        end = len(question) + len(answer)
        ids[row, :end] = torch.tensor(question + answer)
        labels[row, len(question) : end] = torch.tensor(answer)
    return ids, labels
