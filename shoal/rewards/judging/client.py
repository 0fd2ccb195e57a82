"""Asking a judge: many questions at one time, each with a deadline, retries, a cache and a common budget."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from logging import getLogger
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx

from shoal.config.nodes.judge import JudgeConfig
from shoal.errors import BudgetError, ConfigError
from shoal.http import GaveUp, NotYet, RetryPolicy
from shoal.loop_thread import LoopThread
from shoal.network import is_loopback
from shoal.rewards.judging.cache import ReplyCache
from shoal.rewards.judging.spending import Spending
from shoal.rewards.verdict import LONGEST_REASON

logger = getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
CHARACTERS_PER_TOKEN = 4
PASSING = frozenset({408, 409, 425, 429, *range(500, 1000)})  # another try may succeed


@dataclass(frozen=True)
class Question:
    """What is asked. `read` makes the value of a reply, or raises ValueError; `made_up` makes a reply of a number
    between 0 and 1, for runs without a judge. `model` None: the configured one."""

    text: str
    read: Callable[[str], Any]
    made_up: Callable[[float], str]
    model: str | None = None


@dataclass(frozen=True)
class Answer:
    """`value` is None where none could be had; `reason` then says why. `seconds` is the time it took, retries and
    pauses included, waiting for a free place not."""

    value: Any
    reason: str = ""
    seconds: float = 0.0


class _Refused(Exception):
    """The judge said no, and would say it again."""


@dataclass
class _Step:
    """What one training step or evaluation cost, until `metrics` takes it."""

    requests: int = 0
    retries: int = 0
    cached: int = 0
    failed: int = 0
    seconds: float = 0.0
    spent: Spending = field(default_factory=Spending)


class JudgeClient:
    """The judge at one address. `folder` is the run's, for the cache; None: replies are kept in memory.

    Raises:
        ConfigError: the address is none, OpenAI is asked without a key, or the cache cannot be used.
    """

    def __init__(self, options: JudgeConfig, folder: Path | None) -> None:
        self.options = options
        self.folder = folder
        self.url = (options.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        key = os.environ.get("OPENAI_API_KEY")
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ConfigError(f"reward.judge.base_url={self.url} is no address: write http://HOST:PORT/v1")
        if self.url == OPENAI and not key and not options.made_up:
            raise ConfigError(
                "the judge at OpenAI needs a key: set the environment variable OPENAI_API_KEY, or "
                "reward.judge.base_url to the address of another server"
            )
        if options.made_up:
            logger.warning("reward.judge.made_up=true: no judge is asked, its verdicts are made up")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.policy = RetryPolicy(
            tries=1 + options.retries,
            first_pause=options.backoff,
            growth=2.0,
            longest_pause=options.timeout,
            longest_asked=options.timeout,
            busy=PASSING,
        )
        self.cache = ReplyCache(Path(options.cache) if options.cache else folder)
        self.spent = Spending()
        self.step = _Step()
        self.thread: LoopThread | None = None
        self.starting = Lock()
        self.http: httpx.AsyncClient | None = None
        self.places = asyncio.Semaphore(options.concurrency)
        self.asking = 0  # calls of `ask` that wait now
        self.asking_since = 0.0
        self.known: dict[str, asyncio.Task[Answer | None]] = {}  # what was asked ahead, until `metrics`

    def ask(self, questions: Sequence[Question], *, ahead: bool = False) -> list[Answer]:
        """An answer to each question, in order. Equal questions are asked once. May be called from several threads.

        Raises:
            BudgetError: `budget` is spent and something remained to be asked. What was replied is in the cache.
        """
        keys = [self._key(question) for question in questions]
        distinct = dict(zip(keys, questions, strict=True))
        if self.options.made_up:
            answers = {key: _make_up(key, question) for key, question in distinct.items()}
        else:
            with self.starting:
                self.thread = self.thread or LoopThread("judge")
            answers = self.thread.run(self._ask_all(distinct, ahead))
        return [answers[key] for key in keys]

    def metrics(self) -> dict[str, float]:
        """Since the last call: `judge/requests`, of which `judge/retries` were repeated; `judge/cached`, distinct
        questions answered from the cache; `judge/failed`, distinct questions without an answer; tokens, `judge/cost`
        in dollars, `judge/seconds` of waiting. `judge/cost_total` since the run began."""
        step, self.step = self.step, _Step()
        self.known = {}
        return {
            "judge/requests": float(step.requests),
            "judge/retries": float(step.retries),
            "judge/cached": float(step.cached),
            "judge/failed": float(step.failed),
            "judge/tokens_in": float(step.spent.tokens_in),
            "judge/tokens_out": float(step.spent.tokens_out),
            "judge/cost": step.spent.dollars(self.options),
            "judge/cost_total": self.spent.dollars(self.options),
            "judge/seconds": step.seconds,
        }

    def close(self) -> None:
        """Ends the connections, and closes the cache."""
        if self.thread is not None:
            if self.http is not None:
                self.thread.run(self.http.aclose())
            self.thread.close()
        self.cache.close()

    def _key(self, question: Question) -> str:
        """Everything that decides the reply, but not the address: a server may move."""
        return sha256(json.dumps(self._body(question), sort_keys=True).encode()).hexdigest()

    def _body(self, question: Question) -> dict[str, Any]:
        body = {
            "model": question.model or self.options.model,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": self.options.temperature,
            "max_tokens": self.options.max_tokens,
            **self.options.body,
        }
        return {name: value for name, value in body.items() if value is not None}

    async def _ask_all(self, questions: dict[str, Question], ahead: bool) -> dict[str, Answer]:
        self._count_seconds(1)
        tasks = {key: self.known.get(key) or self._start(key, question) for key, question in questions.items()}
        if ahead:
            self.known |= tasks
        try:
            answers = await asyncio.gather(*tasks.values())
        finally:
            self._count_seconds(-1)
        if any(answer is None for answer in answers):
            raise BudgetError(
                f"reward.judge.budget={self.options.budget:g} dollars are spent: "
                f"{self.spent.dollars(self.options):.4g} for {self.spent.tokens_in:,} tokens of questions and "
                f"{self.spent.tokens_out:,} of replies in {self.spent.requests:,} requests"
            )
        return dict(zip(questions, [answer for answer in answers if answer is not None], strict=True))

    def _start(self, key: str, question: Question) -> asyncio.Task[Answer | None]:
        return asyncio.get_running_loop().create_task(self._answer(key, question))

    def _count_seconds(self, change: int) -> None:
        """Counts the time in which somebody waits, once however many do."""
        now = monotonic()
        if self.asking:
            self.step.seconds += now - self.asking_since
        self.asking_since = now
        self.asking += change

    def _connection(self) -> httpx.AsyncClient:
        if self.http is None:
            # A judge on this machine is not asked through a proxy.
            near = is_loopback(urlsplit(self.url).hostname or "")
            limits = httpx.Limits(max_connections=self.options.concurrency)
            # Deadlines are set over whole requests: a reply that trickles would never meet one of httpx's own.
            self.http = httpx.AsyncClient(headers=self.headers, limits=limits, timeout=None, trust_env=not near)
        return self.http

    async def _answer(self, key: str, question: Question) -> Answer | None:
        """None where the budget is spent."""
        tokens = len(question.text) // CHARACTERS_PER_TOKEN
        if self.options.max_prompt_tokens and tokens > self.options.max_prompt_tokens:
            limit = f"judge.max_prompt_tokens={self.options.max_prompt_tokens}"
            return self._no_answer(f"the question to the judge has about {tokens} tokens, more than {limit}")
        known = self._cached(key, question)
        if known is not None:
            self.step.cached += 1
            return known
        async with self.places:
            started = monotonic()
            tries = 0

            async def once() -> Answer | None:
                nonlocal tries
                if self.spent.exhausts(self.options):
                    return None
                self.step.requests += 1
                self.step.retries += tries > 0
                tries += 1
                try:
                    reply = await self._request(self._connection(), question)
                    value = _read(question, reply)
                except (NotYet, _Refused) as failure:
                    logger.debug("judge, try %d: %s", tries, failure)
                    raise
                self.cache.put(key, reply)
                return Answer(value, seconds=monotonic() - started)

            try:
                return await self.policy.wait_for(once, lambda why, seconds: None)
            except (GaveUp, _Refused) as failure:
                return self._no_answer(str(failure)[:LONGEST_REASON], monotonic() - started)

    def _no_answer(self, reason: str, seconds: float = 0.0) -> Answer:
        self.step.failed += 1
        return Answer(None, reason, seconds)

    def _cached(self, key: str, question: Question) -> Answer | None:
        """A reply that can no longer be read (its template's file asks for another form now) is asked for again."""
        reply = self.cache.get(key)
        if reply is None:
            return None
        try:
            return Answer(question.read(reply))
        except ValueError:
            return None

    async def _request(self, http: httpx.AsyncClient, question: Question) -> str:
        """The text of one reply."""
        try:
            async with asyncio.timeout(self.options.timeout):
                response = await http.post(f"{self.url}/chat/completions", json=self._body(question))
        except TimeoutError as error:
            raise NotYet(f"no reply of the judge within {self.options.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise NotYet(f"the judge cannot be reached: {type(error).__name__} {error}") from error
        if response.status_code != httpx.codes.OK:
            why = f"the judge answered with status {response.status_code}: {' '.join(response.text[:200].split())}"
            self.policy.refuse_busy(response, why)
            raise _Refused(why)
        try:
            reply = response.json()
            text = reply["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise NotYet(f"the judge's response is no chat completion: {response.text[:100]!r}") from error
        usage = reply.get("usage") or {}
        bill = Spending(
            1,
            int(usage.get("prompt_tokens") or len(question.text) // CHARACTERS_PER_TOKEN),
            int(usage.get("completion_tokens") or len(str(text)) // CHARACTERS_PER_TOKEN),
        )
        self.step.spent.add(bill)
        self.spent.add(bill)
        if not isinstance(text, str):
            raise NotYet("the judge's reply has no text")
        return text


class AheadClient:
    """Asks through a `JudgeClient` before the answers are wanted: its `ask` has them until its `metrics` are taken."""

    def __init__(self, client: JudgeClient | AheadClient) -> None:
        self.client: JudgeClient = client.client if isinstance(client, AheadClient) else client

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """As `JudgeClient.ask`."""
        return self.client.ask(questions, ahead=True)


def _read(question: Question, reply: str) -> Any:
    try:
        return question.read(reply)
    except ValueError as error:
        raise NotYet(str(error)) from error


def _make_up(key: str, question: Question) -> Answer:
    return Answer(question.read(question.made_up(int(key[:8], 16) / 0xFFFFFFFF)))
