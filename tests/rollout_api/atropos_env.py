"""A real Atropos environment, for .venv-atropos: `python atropos_env.py --api URL --generate URL --prompts FILE ...`.

Each line of the prompts' file is `{"prompt_ids": [...], "answer_ids": [...]}`: a completion that has the answer's ids
in a row scores 1, another half the share of its even ids. Ids go to and come from `/generate`; the tokenizer is
made on the spot, since BaseEnv wants one. It runs until the server's step has reached --steps, and needs no network.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from argparse import ArgumentParser
from itertools import cycle
from pathlib import Path
from typing import Any

from atroposlib.envs.base import APIServerConfig, BaseEnv, BaseEnvConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

NOT_TRAINED, PROMPT_LOGPROB = -100, 1.0


class IdsEnv(BaseEnv):
    """Prompts as ids, scored by ids."""

    name = "ids"

    def __init__(self, config: BaseEnvConfig, servers: list[APIServerConfig], rows: list[dict[str, Any]], tokens: int):
        super().__init__(config, servers)
        self.rows = cycle(rows)
        self.tokens = tokens

    async def setup(self) -> None:
        """Nothing to load."""

    async def get_next_item(self) -> dict[str, Any]:
        return next(self.rows)

    async def evaluate(self, *_: Any, **__: Any) -> None:
        """Nothing is held out."""

    async def collect_trajectories(self, item: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """One group: Atropos's fields, as its own environments fill them."""
        prompt, outputs, logprobs, reasons = await self.server.tokens_and_logprobs_completion(
            input_ids=item["prompt_ids"], prompt="", n=self.config.group_size, max_tokens=self.tokens, temperature=1.0
        )
        group: dict[str, Any] = {"tokens": [], "masks": [], "scores": [], "inference_logprobs": []}
        for ids, values, _ in zip(outputs, logprobs, reasons, strict=True):
            group["tokens"].append(prompt + ids)
            group["masks"].append([NOT_TRAINED] * len(prompt) + ids)
            group["inference_logprobs"].append([PROMPT_LOGPROB] * len(prompt) + values)
            group["scores"].append(score(ids, item.get("answer_ids")))
        return group, []


def score(ids: list[int], answer: list[int] | None) -> float:
    """1 with the answer in it, else half the share of even ids."""
    found = answer and any(ids[start : start + len(answer)] == answer for start in range(len(ids)))
    return 1.0 if found else sum(id_ % 2 == 0 for id_ in ids) / max(1, 2 * len(ids))


def make_tokenizer(folder: Path) -> str:
    """A tokenizer of a few words, in a folder."""
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Serves until the steps are done."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--api", required=True)
    parser.add_argument("--generate", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batches-ahead", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    rows = [json.loads(line) for line in options.prompts.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(Path(folder))
        config = BaseEnvConfig(
            group_size=options.group_size,
            max_num_workers=options.workers,
            max_batches_offpolicy=options.batches_ahead,
            tokenizer_name=tokenizer,
            use_wandb=False,
            wandb_name="ids",
            rollout_server_url=options.api,
            total_steps=options.steps,
            steps_per_eval=0,
            ensure_scores_are_not_same=False,
        )
        server = APIServerConfig(
            model_name="policy",
            base_url=options.generate + "/v1",
            api_key="none",
            server_type="vllm",
            tokenizer_name=tokenizer,
            num_requests_for_eval=1,
        )
        env = IdsEnv(config, [server], rows, options.max_tokens)
        asyncio.run(env.env_manager())


if __name__ == "__main__":
    main()
