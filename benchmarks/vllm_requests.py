"""What HTTP costs a rollout: 256 completions of the default task's shape through three doors of vLLM, interleaved.

`in process` is vLLM stepped by Shoal (engine=vllm); `shoal` is the launched server's own route, one list in and a line
out for each completion (engine=vllm_server); `openai` is /v1/completions on the same server, one request a completion
over 32 connections. The same model, prompts, seeds and lengths. Prints the seconds of each run, their medians, and what
a request costs more than in process.

    python benchmarks/vllm_requests.py --runs 5
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from story_shape import story_shaped_model

from shoal.config.nodes.vllm import VllmConfig
from shoal.engines.base import Request, SamplingParams
from shoal.engines.servers.requests import RequestForm
from shoal.engines.stopping import eos_ids
from shoal.engines.vllm.arguments import VllmArguments
from shoal.engines.vllm.in_process import InProcessVllmEngine
from shoal.engines.vllm.server_engine import VllmServerEngine
from shoal.tasks.story import story_tokenizer

PROMPTS, GROUP, NEW_TOKENS, CONNECTIONS = 32, 8, 40, 32


def make_requests(run: int) -> list[Request]:
    """A step's requests. Random weights seldom end a completion, so all have the same length: the same work."""
    random = Random(run)
    prompts = [tuple(random.randrange(4, 100) for _ in range(random.randrange(8, 40))) for _ in range(PROMPTS)]
    return [
        Request(f"{run}/{number}/{index}", prompt, 1000 * number + index, SamplingParams(NEW_TOKENS), f"{run}/{number}")
        for number, prompt in enumerate(prompts)
        for index in range(GROUP)
    ]


async def by_openai(engine: VllmServerEngine, requests: list[Request]) -> None:
    """The same through /v1/completions."""
    async with engine.servers[0].connection(CONNECTIONS) as client:
        free = asyncio.Semaphore(CONNECTIONS)

        async def one(request: Request) -> int:
            body = {
                "model": "policy",
                "prompt": list(request.prompt_ids),
                "seed": request.seed,
                "max_tokens": NEW_TOKENS,
                "logprobs": 0,
                "return_token_ids": True,
            }
            async with free:
                response = await client.post("/v1/completions", json=body)
            response.raise_for_status()
            return len(response.json()["choices"][0]["token_ids"])

        await asyncio.gather(*(one(request) for request in requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    tokenizer = story_tokenizer()
    model = story_shaped_model(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        line = VllmArguments(str(folder / "model"), "float32", 256, PROMPTS * GROUP, "cpu", cache_gib=1.0, eager=True)
        server = VllmServerEngine(
            line, RequestForm(eos_ids(model, tokenizer), tokenizer, 256, 128), VllmConfig(), folder
        )
        inside = InProcessVllmEngine(line, RequestForm(eos_ids(model, tokenizer), tokenizer, 256, 128), 600.0)
        doors: dict[str, Callable[[list[Request]], object]] = {
            "in process": inside.generate,
            "shoal": server.generate,
            "openai": lambda requests: asyncio.run(by_openai(server, requests)),
        }
        seconds: dict[str, list[float]] = {door: [] for door in doors}
        try:
            for run in range(runs + 1):  # the first warms up
                for door, generate in doors.items():
                    requests = make_requests(run)
                    start = perf_counter()
                    generate(requests)
                    if run:
                        seconds[door].append(perf_counter() - start)
        finally:
            server.close()
            inside.close()
    floor = median(seconds["in process"])
    for door, found in seconds.items():
        each = " ".join(f"{one:.2f}" for one in found)
        more = (median(found) - floor) / (PROMPTS * GROUP) * 1000
        print(f"{door:<11} {each}  median {median(found):.2f} s, {more:+.1f} ms a request")
    ratio = median(a / b for a, b in zip(seconds["openai"], seconds["shoal"], strict=True))
    print(f"/v1/completions takes {ratio:.1f} times as long as Shoal's route (median of pairs)")


if __name__ == "__main__":
    main()
