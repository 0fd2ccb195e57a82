"""Options of the machine: device, precision, threads."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class RuntimeConfig:
    """Where the run runs. Everything on `auto` follows from the target."""

    target: str = option("auto", "Kind of machine", choices=("auto", "linux_gpu", "mac", "cpu"))
    device: str = option("auto", "Torch device, such as cuda:1. auto: the target's")
    mixed_precision: str = option(
        "auto", "Dtype of matrix products over float32 parameters", choices=("auto", "none", "bf16", "fp16")
    )
    threads: int = option(0, "CPU threads of torch. 0: all cores", least=0, most=1024)
    tune_malloc: bool = option(
        True, "Small models: keep freed memory in the process (glibc), for fewer page faults on a CPU"
    )
