"""Options of the reference policy."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class ReferenceConfig:
    """The policy that the KL is measured to. Loaded only where algorithm.kl_coef > 0."""

    kind: str = option(
        "model",
        "model: in the learner's process. vllm_launch: a vLLM server of its own. vllm_endpoint: one that runs already",
        choices=("model", "vllm_launch", "vllm_endpoint"),
    )
    name: str | None = option(
        None, "Hub name or folder. None: the policy as it was at the start. vllm_endpoint: the name that is served"
    )
    revision: str | None = option(None, "Branch, tag or commit")
    polyak_every: int = option(0, "Steps between updates of the reference towards the policy. 0: never", least=0)
    polyak_alpha: float = option(0.6, "reference <- alpha x policy + (1 - alpha) x reference", least=0)
    num_devices: int = option(
        0,
        "GPUs of the reference alone. 0: the learner's (model), or as many as reference.tensor_parallel if they are "
        "free (vllm_launch)",
        least=0,
        most=4096,
    )
    devices: list[int] = option(list, "The same by hand, as torch numbers them")
    host: str = option("127.0.0.1", "vLLM: address of the server")
    port: int = option(0, "vLLM: port of the server. 0: a free one (vllm_launch)", least=0, most=65535)
    dtype: str = option(
        "auto",
        "vllm_launch: dtype of weights and computation. auto: that of the policy's parameters",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    memory_share: float = option(0.0, "vllm_launch: share of a GPU's memory. 0: 0.9", least=0)
    tensor_parallel: int = option(1, "vllm_launch: devices that share each layer", least=1)
    max_model_len: int = option(0, "vllm_launch: most tokens of prompt and completion. 0: as long as needed", least=0)
    api_key: str | None = option(None, "vLLM: key of the server. None: $SHOAL_VLLM_API_KEY, if set")
    start_timeout: float = option(600.0, "vllm_launch: seconds until the server must answer", least=1, most=1e6)
    request_timeout: float = option(120.0, "vLLM: seconds until a completion must be scored", least=1, most=1e6)
    retries: int = option(3, "vLLM: how often a completion is asked again before the run stops", least=0)
    concurrency: int = option(64, "vLLM: completions that are scored at a time", least=1, most=4096)
    extra_args: list[str] = option(list, "vllm_launch: further arguments of vLLM's command line")
