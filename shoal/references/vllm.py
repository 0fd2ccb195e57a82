"""The reference as a vLLM server: launched by Shoal, or one that runs already."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import httpx

from shoal.config import ShoalConfig
from shoal.engines.servers.requests import scored, scoring_request
from shoal.engines.vllm import compat as vllm_compat
from shoal.engines.vllm.arguments import VllmArguments, longest, on_device
from shoal.engines.vllm.client import PlainVllmClient, VllmClient
from shoal.engines.vllm.endpoint import check_endpoint, has_shoal_routes, key_or_environment
from shoal.engines.vllm.process import VllmProcess
from shoal.errors import EngineError
from shoal.learners.model import load_frozen
from shoal.models.adapters import adapter_base
from shoal.models.info import ModelInfo
from shoal.references.base import Reference, unscored_segments
from shoal.runtime import Runtime
from shoal.types import Group, Segment

logger = getLogger(__name__)

LONGEST_PAUSE = 10.0  # seconds between attempts


class VllmReference(Reference):
    """Scores sampled ids as the prompt of a request that samples one more token, many at a time.

    Args:
        client: Asks the server.
        concurrency: Completions that are with the server at a time.
        retries: How often what failed is asked again.
        process: The server, where Shoal launched it; it is started again where it died.
        arguments: What it is started with.
    """

    def __init__(
        self,
        client: VllmClient,
        *,
        concurrency: int,
        retries: int,
        process: VllmProcess | None = None,
        arguments: VllmArguments | None = None,
    ) -> None:
        self.client = client
        self.concurrency = concurrency
        self.retries = retries
        self.process = process
        self.arguments = arguments

    def score(self, groups: Sequence[Group]) -> None:
        segments = unscored_segments(groups)
        for segment, row in zip(segments, self.logprobs(segments), strict=True):
            segment.ref_logprobs = row

    def logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context."""
        asked = [
            scoring_request(segment, str(number)) for number, segment in enumerate(segments) if segment.sampled_ids
        ]
        found = asyncio.run(self._ask_until_scored(asked))
        return scored(segments, [found[request["id"]] for request in asked])

    async def _ask_until_scored(self, asked: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        why = "it gave fewer results than it was asked for"
        for attempt in range(self.retries + 1):
            missing = [request for request in asked if request["id"] not in found]
            try:
                async with self.client.connection(self.concurrency) as connection:
                    for start in range(0, len(missing), self.concurrency):
                        async for result in self.client.ask(connection, missing[start : start + self.concurrency]):
                            if "error" in result:
                                raise EngineError(f"reference: {self.client.name}: {result['error']}")
                            found[result["id"]] = result
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}"
                logger.warning("reference, %s: %s (%d of %d scored)", self.client.name, why, len(found), len(asked))
            if len(found) == len(asked):
                return found
            if attempt < self.retries:
                await asyncio.sleep(min(2.0**attempt / 2, LONGEST_PAUSE))
                self._start_again_if_dead()
        raise EngineError(
            f"reference: {self.client.name} left {len(asked) - len(found)} of {len(asked)} completions without "
            f"log-probs after {self.retries} retries ({why}); {self.client.where_to_look()}, or raise "
            "reference.retries or reference.request_timeout"
        )

    def _start_again_if_dead(self) -> None:
        if self.process is None or self.arguments is None or self.process.healthy():
            return
        self.process.stop()
        self.process.launch(self.arguments.line())
        self.process.wait_until_healthy()

    def close(self) -> None:
        if self.process is not None:
            self.process.stop()


def launched_reference(cfg: ShoalConfig, info: ModelInfo, runtime: Runtime, folder: Path) -> VllmReference:
    """`reference.kind=vllm_launch`: a server on the policy as it was at the start, or on another model.

    Raises:
        EngineError: vLLM is missing, the port is taken, or the server does not start.
    """
    vllm_compat.check_vllm()
    arguments = reference_arguments(cfg, info, runtime, folder)
    key = key_or_environment(cfg.reference.api_key)
    process = VllmProcess(
        arguments.line(),
        arguments.environment() | runtime.plan.reference_environment() | ({"VLLM_API_KEY": key} if key else {}),
        host=cfg.reference.host,
        port=cfg.reference.port,
        log=folder / "vllm_reference.log",
        start_timeout=cfg.reference.start_timeout,
        key="reference",
    )
    process.wait_until_healthy()
    client = VllmClient(process.url, api_key=key, timeout=cfg.reference.request_timeout, key="reference.api_key")
    return VllmReference(
        client,
        concurrency=cfg.reference.concurrency,
        retries=cfg.reference.retries,
        process=process,
        arguments=arguments,
    )


def reference_arguments(cfg: ShoalConfig, info: ModelInfo, runtime: Runtime, folder: Path) -> VllmArguments:
    """The vLLM that scores for the reference. An adapter is merged into its base, and the whole written to `folder`."""
    own = cfg.reference
    device = runtime.device.type if runtime.device.type == "cuda" else "cpu"
    model = own.name or info.name
    revision = own.revision if own.name else cfg.model.revision
    if adapter_base(own.name or cfg.model.name) is not None:
        model, revision = str(write_merged(cfg, info, runtime, folder / "reference_model")), None
    return VllmArguments(
        model=model,
        tokenizer=info.tokenizer.name_or_path,
        revision=revision,
        trust_remote_code=cfg.model.trust_remote_code,
        dtype=str(runtime.param_dtype).removeprefix("torch.") if own.dtype == "auto" else own.dtype,
        max_model_len=own.max_model_len or min(longest(cfg) + 1, info.max_positions),
        max_num_seqs=own.concurrency,
        device=device,
        tensor_parallel=own.tensor_parallel,
        memory_share=own.memory_share or runtime.plan.reference_share(),
        cache_gib=1.0 if device == "cpu" else 0.0,
        eager=on_device("auto", device),
        extra=tuple(own.extra_args),
    )


def write_merged(cfg: ShoalConfig, info: ModelInfo, runtime: Runtime, folder: Path) -> Path:
    """Writes the reference's adapter merged into its base, as vLLM loads it: as it is on disk, whatever the policy has
    learnt since."""
    own = cfg.reference
    model = load_frozen(
        own.name or cfg.model.name,
        own.revision if own.name else cfg.model.revision,
        cfg.model.trust_remote_code,
        runtime,
        any_attention=cfg.model.attention == "auto",
        key="reference.name" if own.name else "model.name",
    )
    model.save_pretrained(folder)
    info.tokenizer.save_pretrained(folder)
    return folder


def endpoint_reference(cfg: ShoalConfig, info: ModelInfo) -> VllmReference:
    """`reference.kind=vllm_endpoint`: a server that runs already, Shoal's or any other vLLM.

    Raises:
        EngineError: nothing answers, the key is wrong, or the model there does not fit the policy's tokens.
    """
    own = cfg.reference
    url = f"http://{own.host}:{own.port}"
    key = key_or_environment(own.api_key)
    options: dict[str, Any] = {"api_key": key, "timeout": own.request_timeout, "key": "reference.api_key"}
    client = VllmClient(url, **options)
    model = check_endpoint(
        url,
        client.headers,
        tokenizer=info.tokenizer,
        needed=longest(cfg) + 1,
        where=f"reference.kind=vllm_endpoint at {url}",
        key="reference.api_key",
        name=own.name,
    )
    if not has_shoal_routes(url, client.headers):
        client = PlainVllmClient(url, str(model["id"]), **options)
    return VllmReference(client, concurrency=own.concurrency, retries=own.retries)
