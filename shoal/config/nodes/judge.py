"""Options of the judge: a language model that scores completions."""

from dataclasses import dataclass
from typing import Any

from shoal.config.options import option


@dataclass
class JudgeConfig:
    """The model that the verifiers `judge`, `rubric` and `citations` ask, at an OpenAI-compatible address."""

    model: str = option("gpt-4.1-mini", "Name of the model")
    base_url: str | None = option(
        None, "Address, such as http://127.0.0.1:8000/v1. None: $OPENAI_BASE_URL, else OpenAI. The key: $OPENAI_API_KEY"
    )
    template: str = option(
        "quality",
        "What the verifier `judge` asks for. quality: a rating. quality_reference: a rating given the ground truth. "
        "pairwise: the better of two answers of a group",
        choices=("quality", "quality_reference", "pairwise"),
    )
    template_file: str | None = option(None, "Jinja file that replaces the template's text")
    highest: float = option(10.0, "Highest rating, which scores 1; a rating of 0 scores 0. Not for pairwise", least=1)
    comparisons: int = option(
        2, "Pairwise: completions of its group on either side that each completion is compared with", least=1
    )
    temperature: float | None = option(0.0, "Temperature of the judge. None: the server's", least=0)
    max_tokens: int = option(2048, "Most tokens of a reply", least=1)
    max_prompt_tokens: int = option(
        32768,
        "Longer requests (4 characters count as one token) are not sent, and the reward is missing. 0: no limit",
        least=0,
    )
    body: dict[str, Any] = option(dict, "Additional fields of a request, such as {seed: 1}; null removes a field")
    concurrency: int = option(32, "Requests at one time", least=1, most=4096)
    timeout: float = option(60.0, "Seconds that one request may take", least=0.01, most=1e6)
    retries: int = option(3, "Further requests after one that failed or whose reply cannot be read", least=0)
    backoff: float = option(
        1.0,
        "Seconds before the first retry, doubled each time; Retry-After is obeyed up to judge.timeout",
        least=0,
        most=1e6,
    )
    cache: str | None = option(None, "Folder of the reply cache, which several runs can share. None: the run folder")
    price_in: float = option(0.0, "Dollars per million prompt tokens", least=0)
    price_out: float = option(0.0, "Dollars per million reply tokens", least=0)
    budget: float = option(0.0, "Dollars after which the run is saved and stops. 0: no budget", least=0)
    made_up: bool = option(False, "Make replies up instead of asking (set by --smoke-test)")
