"""vLLM behind HTTP: one server or several, launched here or run by someone else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shoal.config.nodes.vllm import VllmConfig
from shoal.engines.servers.engine import ServersEngine
from shoal.engines.servers.process import Launcher
from shoal.engines.servers.requests import RequestForm
from shoal.engines.servers.server import Owner, Server, all_started
from shoal.engines.vllm import compat as vllm_compat
from shoal.engines.vllm.arguments import VllmArguments
from shoal.engines.vllm.client import VllmClient
from shoal.engines.vllm.endpoint import check_endpoint, key_or_environment
from shoal.engines.vllm.process import VllmProcess


class VllmServer(VllmClient, Server):
    """One vLLM."""

    option = "engine.vllm"
    timeout_key = "engine.vllm.request_timeout"


class VllmServerEngine(ServersEngine):
    """vLLM's servers.

    Args:
        arguments: What launched servers are started with.
        form: Makes the requests.
        cfg: `engine.vllm`.
        folder: For log files.
        launcher: Starts the servers on the nodes of a cluster. None: on this machine.

    Raises:
        EngineError: a server does not start, or an endpoint does not answer.
    """

    def __init__(
        self,
        arguments: VllmArguments,
        form: RequestForm,
        cfg: VllmConfig,
        folder: Path,
        launcher: Launcher | None = None,
    ) -> None:
        super().__init__(
            form,
            timeout=cfg.request_timeout,
            restarts=cfg.restarts,
            open_servers=lambda owner: (
                connect(owner, cfg) if cfg.endpoints else launch(owner, arguments, cfg, folder, launcher)
            ),
        )


def launch(
    engine: Owner,
    arguments: VllmArguments,
    cfg: VllmConfig,
    folder: Path,
    launcher: Launcher | None = None,
) -> list[VllmServer]:
    """Starts `engine.vllm.servers` servers at once and waits until all answer.

    Raises:
        EngineError: vLLM is missing, a port is taken, or a server does not start; none is left running.
    """
    vllm_compat.check_vllm()
    key = key_or_environment(cfg.api_key)
    start = launcher or VllmProcess.here
    environment = arguments.environment() | ({"VLLM_API_KEY": key} if key else {})

    def launched() -> Iterator[VllmServer]:
        for number in range(cfg.servers):
            process = start(
                number,
                arguments.line(),
                environment | gpu_of(arguments, number),
                host=cfg.host,
                port=cfg.port + number if cfg.port else 0,
                log=folder / f"vllm_{number}.log",
                start_timeout=cfg.start_timeout,
                key="engine.vllm",
            )
            yield VllmServer(engine, process.url, arguments.model, arguments=arguments, process=process, api_key=key)

    return all_started(launched())


def gpu_of(arguments: VllmArguments, number: int) -> dict[str, str]:
    """The variable that gives the number-th server the GPUs of the device plan; empty where nothing was planned."""
    return dict(arguments.devices[number]) if arguments.devices else {}


def connect(engine: Owner, cfg: VllmConfig) -> list[VllmServer]:
    """Servers that someone else runs, at `engine.vllm.endpoints`.

    Raises:
        EngineError: one is not there, or does not fit the policy.
    """
    key = key_or_environment(cfg.api_key)
    servers = []
    for url in cfg.endpoints:
        server = VllmServer(engine, url, "", api_key=key)
        model = check_endpoint(
            server.url,
            server.headers,
            tokenizer=engine.form.tokenizer,
            needed=engine.form.needed,
            where=f"engine.vllm.endpoints={url}",
            key=server.key,
        )
        server.model = str(model.get("root") or model["id"])
        engine.form.max_model_len = min(engine.form.max_model_len, model.get("max_model_len") or 2**31)
        server.look_up()
        servers.append(server)
    return servers
