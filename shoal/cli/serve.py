"""`shoal serve`: the servers that run by themselves, and their flags."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from math import isfinite
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.rewards.sandbox.serve import serve_code
from shoal.rewards.sandbox.tiers import TIERS

LAST_PORT = 65535


def add_serve(verbs: Any) -> Any:
    """Adds `shoal serve code|api|vllm` to the command line; gives what further servers are added to."""
    servers = verbs.add_parser("serve", help="Run a server.").add_subparsers(required=True, metavar="WHAT")
    text = "Run a sandbox for programs: the verifier `code` uses it where reward.code.url says so."
    code: ArgumentParser = servers.add_parser("code", help=text, description=text)
    code.set_defaults(run=run_serve_code, overrides=[])
    code.add_argument("--host", default="127.0.0.1", help="a public address needs SHOAL_CODE_TOKEN in the environment")
    code.add_argument("--port", type=int, required=True, help="0: a free one, which the first line names")
    code.add_argument("--tier", default="bubblewrap", choices=TIERS, help="isolation; never a weaker one")
    code.add_argument("--python", metavar="FILE", help="Python that runs the programs, with its packages")
    code.add_argument("--workers", type=int, default=os.cpu_count(), help="programs at once (default: one a core)")
    code.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    _serve_api(servers)
    _serve_vllm(servers)
    return servers


def _serve_vllm(servers: Any) -> None:
    text = "Run a vLLM server for trainers (engine.vllm.endpoints, vllm_endpoint references) and environments."
    vllm: ArgumentParser = servers.add_parser("vllm", help=text, description=text)
    vllm.set_defaults(run=run_serve_vllm, overrides=[])
    vllm.add_argument("--model", required=True, help="Hub name or local folder")
    vllm.add_argument(
        "--host", default="127.0.0.1", help="a public address needs SHOAL_VLLM_API_KEY in the environment"
    )
    vllm.add_argument("--port", type=int, default=9001, help="(default: %(default)s)")
    vllm.add_argument(
        "--bridge", metavar="DIR", help="share the weights with a trainer on this machine (weight_sync=shared)"
    )
    vllm.add_argument(
        "--lora-rank", type=int, default=0, metavar="R", help="take adapters up to this rank (weight_sync=lora)"
    )
    vllm.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    vllm.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="devices that share each layer")
    vllm.add_argument(
        "--memory-share", type=float, default=0.9, metavar="X", help="of a GPU's memory (default: %(default)s)"
    )
    vllm.add_argument(
        "--cache-gib", type=float, default=0.0, metavar="G", help="KV cache; default: by --memory-share, 1 on a CPU"
    )
    vllm.add_argument(
        "--max-model-len", type=int, default=0, metavar="N", help="tokens of prompt and completion (default: 4096)"
    )
    vllm.add_argument("--max-batch", type=int, default=256, metavar="N", help="completions at a time (default: 256)")
    vllm.add_argument("--eager", default="auto", choices=("auto", "on", "off"), help="no compiled graphs")
    vllm.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    vllm.add_argument("extra", nargs="*", metavar="-- ARGUMENT", help="further arguments of vLLM's own command line")


def _serve_api(servers: Any) -> None:
    text = (
        "Run the rollout API: environments post scored groups, a trainer fetches them in batches (docs/rollout-api.md)."
    )
    api: ArgumentParser = servers.add_parser("api", help=text, description=text)
    api.set_defaults(run=run_serve_api, overrides=[])
    api.add_argument("--host", default="127.0.0.1", help="a public address needs tokens in the environment")
    api.add_argument("--port", type=int, default=8000, help="0: a free one, which the first line names (default: 8000)")
    api.add_argument(
        "--store",
        metavar="FILE",
        default="groups.sqlite",
        help="SQLite file that keeps everything; made when missing (default: %(default)s)",
    )
    api.add_argument("--max-groups", type=int, default=100_000, help="groups that may wait (default: 100000)")
    api.add_argument("--max-gigabytes", type=float, default=50.0, help="size of what is stored (default: 50)")
    api.add_argument("--max-request-mb", type=float, default=256.0, help="size of one request, inflated (default: 256)")
    api.add_argument(
        "--max-staleness", type=int, metavar="N", help="drop groups sampled more than N weight versions ago"
    )
    api.add_argument(
        "--environment-timeout", type=float, default=60.0, metavar="S", help="silent after S seconds (default: 60)"
    )
    api.add_argument(
        "--minimum-wait",
        type=float,
        default=10.0,
        metavar="S",
        help="batches wait S seconds for a minimum (default: 10)",
    )
    api.add_argument("--extra-fields", default="refuse", choices=("refuse", "drop"), help="unknown fields of a group")
    api.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def check_port(port: int) -> None:
    """Raises ConfigError where no port has this number."""
    if not 0 <= port <= LAST_PORT:
        raise ConfigError(f"--port {port}: a port is a number from 0 (a free one) to {LAST_PORT}")


def run_serve_code(options: Namespace) -> int:
    """`shoal serve code`: serves until Ctrl-C or SIGTERM."""
    check_port(options.port)
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least 1")
    return serve_code(options.host, options.port, tier=options.tier, python=options.python, workers=options.workers)


def run_serve_vllm(options: Namespace) -> int:
    """`shoal serve vllm`: serves until Ctrl-C or SIGTERM."""
    check_port(options.port)
    from shoal.engines.vllm.serve import ServeOptions, serve_vllm  # noqa: PLC0415 imports torch, slow for --help

    flags = {name: value for name, value in vars(options).items() if name in ServeOptions.__dataclass_fields__}
    return serve_vllm(ServeOptions(**flags))


def run_serve_api(options: Namespace) -> int:
    """`shoal serve api`: serves until Ctrl-C or SIGTERM."""
    check_port(options.port)
    for name in (
        "max_groups",
        "max_gigabytes",
        "max_request_mb",
        "environment_timeout",
        "minimum_wait",
        "max_staleness",
    ):
        value, least = getattr(options, name), 0 if name in ("minimum_wait", "max_staleness") else 1e-9
        if value is not None and not (value >= least and isfinite(value)):
            wanted = "at least 0" if least == 0 else "more than 0"
            raise ConfigError(f"--{name.replace('_', '-')} {value}: a number is needed that is {wanted}")
    from shoal.rollout_api.server.records import ServerOptions  # noqa: PLC0415 imports FastAPI, which --help must not wait for
    from shoal.rollout_api.server.serve import serve_api  # noqa: PLC0415 the same

    server_options = ServerOptions(
        max_groups=options.max_groups,
        max_bytes=int(options.max_gigabytes * 2**30),
        max_request=int(options.max_request_mb * 2**20),
        max_staleness=options.max_staleness,
        environment_timeout=options.environment_timeout,
        minimum_wait=options.minimum_wait,
        drop_extra=options.extra_fields == "drop",
    )
    return serve_api(options.host, options.port, Path(options.store), server_options)
