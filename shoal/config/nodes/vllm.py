"""Options of the engines that are vLLM, in this process or as servers."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class VllmConfig:
    """vLLM as the engine (engine=vllm, engine=vllm_server)."""

    dtype: str = option(
        "auto",
        "Dtype of weights and computation. auto: that of the policy's parameters",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    tensor_parallel: int = option(1, "Devices that share each layer of one vLLM", least=1)
    max_model_len: int = option(
        0,
        "Most tokens of prompt and completion. 0: what data.max_prompt_tokens, the longest max_new_tokens and the "
        "self-check's probe need",
        least=0,
    )
    memory_share: float = option(0.0, "Share of a GPU's memory. 0: 0.9, or 0.45 beside the learner on one GPU", least=0)
    cache_gib: float = option(0.0, "KV cache in GiB. 0: by memory_share on a GPU, 1 on a CPU", least=0, most=1e6)
    eager: str = option("auto", "Run without compiled graphs. auto: on a CPU only", choices=("auto", "on", "off"))
    prefix_cache: bool = option(True, "Reuse the KV cache of repeated prompts")
    sleep: bool = option(True, "engine=vllm on the learner's GPU: free weights and cache while training")
    extra_args: list[str] = option(list, "Further arguments of vLLM's own command line, such as --block-size=32")
    servers: int = option(1, "engine=vllm_server: servers to launch. Each group is sampled on one of them", least=1)
    host: str = option("127.0.0.1", "Address that launched servers listen on")
    port: int = option(
        0, "Port of the first launched server; the others use the next ports. 0: free ones", least=0, most=65535
    )
    endpoints: list[str] = option(
        list, "Addresses of running servers, such as http://10.0.0.5:8000, instead of launching any"
    )
    api_key: str | None = option(None, "Key of the servers. None: $SHOAL_VLLM_API_KEY, if set")
    start_timeout: float = option(600.0, "Seconds until a launched server must answer", least=1, most=1e6)
    request_timeout: float = option(
        600.0, "Seconds without any completion, or for one call, before a server counts as hanging", least=1, most=1e6
    )
    restarts: int = option(5, "Most restarts of crashed servers in a run; then the run stops", least=0)
