"""The environment's contract: how one item becomes one completion. How the model is reached is not its business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shoal.config import ShoalConfig
from shoal.engines.base import EngineOutput, SamplingParams
from shoal.engines.seeds import sampling_seed
from shoal.errors import ConfigError
from shoal.models.chat import render
from shoal.types import Completion, Prompt

EVALUATION_EPOCH = -1
"""The epoch of held-out prompts: their seeds are those of no training epoch, and the same in every evaluation."""
CHECK_EPOCH = -2
"""The epoch of the start-up check's completions."""


class Item(NamedTuple):
    """What one group answers: a prompt, and how often the data had been gone through when it was drawn."""

    prompt: Prompt
    epoch: int = 0

    @property
    def key(self) -> str:
        """Names the item's group within a run."""
        return f"{self.prompt.id}/{self.epoch}"


class Model(Protocol):
    """Whatever samples: the engine of this process (`EngineModel`), or one behind HTTP (`EngineClient`)."""

    async def sample(
        self, context_ids: Sequence[int], seed: int, sampling: SamplingParams, *, group: str = ""
    ) -> EngineOutput:
        """What the model writes after these ids. Requests of one `group` share their prompt's prefill where they can.

        Raises:
            EngineError: the engine gives no answer within its deadline.
            RequestRefused: the engine is there and refuses this request.
        """
        ...


class Environment(ABC):
    """Makes completions. A subclass writes `rollout`, or, for conversations, `reply` of `MultiTurnEnvironment`.

    Prompts, verifiers and sampling are the run's, unless the environment has its own `items` or `reward`.

    Args:
        cfg: The run's configuration.
        tokenizer: The policy's.
        decode: Token ids to the text that verifiers see.
    """

    reward: Callable[..., Any] | None = None
    """A method `reward(self, submission) -> float` judges completions in place of verifiers, as a function in
    `train(cfg, rewards=...)` does: raising makes the reward missing."""

    def __init__(self, cfg: ShoalConfig, tokenizer: Any, decode: Callable[[list[int]], str]) -> None:
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.decode = decode

    @abstractmethod
    async def rollout(self, item: Item, index: int, model: Model, sampling: SamplingParams) -> Completion:
        """One completion of an item. `index` is its place in the group, which seeds it (see `seed`).

        An exception ends this completion alone: it is counted with the missing rewards, never trained on as a 0.
        """

    def items(self) -> Sequence[Prompt] | None:
        """Prompts to train on, in place of the data set's; made by `prompt`. None: the data set's."""
        return None

    def held_out(self) -> Sequence[Prompt]:
        """Prompts to evaluate on, where `items` gives some: none unless a subclass has them."""
        return ()

    def close(self) -> None:
        """Frees what the environment holds."""

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the chat template is given beside the messages, for the data set's prompts too."""
        return self.cfg.model.chat_template_kwargs

    def prompt(self, question: str | Sequence[Mapping[str, Any]], ground_truth: Any = None) -> Prompt:
        """A prompt for `items` and `held_out`: a user's question, or messages, rendered by the chat template.

        Its id is set from its place in `items` or `held_out`.
        """
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(map(dict, question))
        [ids] = render([messages], self.tokenizer, self.template_kwargs)
        return Prompt(id="", token_ids=ids, ground_truth=ground_truth, messages=messages, source="environment")

    def seed(self, item: Item, index: int, turn: int = 0) -> int:
        """The seed of one turn of one completion: hash(run seed, prompt id, epoch, index, turn)."""
        return sampling_seed(self.cfg.run.seed, item.prompt.id, item.epoch, index, turn)


def own_prompts(environment: Environment) -> tuple[list[Prompt], list[Prompt]] | None:
    """An environment's own training and held-out prompts, with their ids; None where it has none of its own.

    Raises:
        ConfigError: it has items, but none to train on.
    """
    items = environment.items()
    if items is None:
        return None
    if not items:
        raise ConfigError(f"{type(environment).__name__}.items() gives no prompts: give one at least, or None")
    train, held_out = list(items), list(environment.held_out())
    for side, prompts in (("items", train), ("held_out", held_out)):
        for place, prompt in enumerate(prompts):
            prompt.id = prompt.id or f"{side}/{place}"
    return train, held_out
