"""The environment that Ray and the driver get: only what is known to be wanted, because SLURM sets 200 KiB of it.

`python -m shoal.slurm.environment COMMAND ...` becomes the command in that environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

PREFIXES = (
    "CUDA_", "DEEPSPEED_", "DS_", "FI_", "GLOO_", "HF_", "KMP_", "LC_", "MKL_", "MPICH_", "NCCL_", "NVIDIA_", "NVTE_",
    "OMP_", "PYTHON", "PYTORCH_", "RAY_", "SHOAL_", "SSL_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_", "UCX_",
    "VLLM_", "WANDB_", "XDG_CACHE_",
)  # fmt: skip
NAMES = (
    "HOME", "LANG", "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ",
    "USER", "VIRTUAL_ENV", "CC", "CXX", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY", "OPENAI_API_KEY", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURMD_NODENAME",
)  # fmt: skip


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """What is passed on: `NAMES`, what begins with one of `PREFIXES` or with a word of SHOAL_KEEP_ENV.

    LD_PRELOAD is not: a library that one command wants breaks others. SHOAL_LD_PRELOAD is that of the driver.
    """
    more = tuple(environment.get("SHOAL_KEEP_ENV", "").split())
    return {name: value for name, value in environment.items() if name in NAMES or name.startswith((*PREFIXES, *more))}


def main() -> None:
    """Becomes the command of the arguments."""
    passed = kept(os.environ)
    if passed.get("SHOAL_LD_PRELOAD"):
        passed["LD_PRELOAD"] = passed["SHOAL_LD_PRELOAD"]
    os.execvpe(sys.argv[1], sys.argv[1:], passed)


if __name__ == "__main__":
    main()
