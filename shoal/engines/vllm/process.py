"""The process of a vLLM server."""

from __future__ import annotations

from shoal.engines.servers.process import ServerProcess


class VllmProcess(ServerProcess):
    """One launched vLLM."""

    module = "shoal.engines.vllm.inside.app"
    what = "vLLM server"
