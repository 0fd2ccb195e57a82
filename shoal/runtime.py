"""The machine: device, precision and attention implementation, and what the process is set to."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from logging import getLogger

import torch

from shoal.config.nodes.model import ModelConfig
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.errors import ConfigError

logger = getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

# mallopt's parameter numbers, from glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
GIB = 2**30
MOST_THREADS = 256


@dataclass(frozen=True)
class Runtime:
    """What a run computes with.

    `compute_dtype` is the dtype of matrix products over float32 parameters; None: that of the parameters. `notes` are
    lines for the user.
    """

    device: torch.device
    param_dtype: torch.dtype
    compute_dtype: torch.dtype | None
    attention: str
    notes: list[str] = field(default_factory=list)

    @property
    def master_weights(self) -> bool:
        """True where parameters have 16 bits, so that the optimizer keeps float32 copies."""
        return self.param_dtype.itemsize == 2

    @property
    def loss_scaling(self) -> bool:
        """True where gradients pass through float16, whose small values need a scaled loss."""
        return torch.float16 in (self.param_dtype, self.compute_dtype)


def resolve_runtime(runtime: RuntimeConfig, model: ModelConfig) -> Runtime:
    """Decides device, precision and attention implementation.

    On CUDA the default is bfloat16 parameters with float32 master weights and float32 gradient sums in the optimizer:
    decoding reads half the bytes and casts nothing, and no update is lost to rounding. `model.dtype=float32` keeps
    float32 parameters and computes under autocast instead. Elsewhere parameters are float32; a CPU with native
    bfloat16 instructions multiplies matrices in it.

    Raises:
        ConfigError: the target, the device or the attention implementation is not there.
    """
    notes: list[str] = []
    device = _device(runtime, notes)
    param_dtype = _param_dtype(model.dtype, device)
    compute_dtype = _compute_dtype(runtime.mixed_precision, param_dtype, device)
    return Runtime(
        device, param_dtype, compute_dtype, _attention(model.attention, param_dtype, compute_dtype, device), notes
    )


def _device(runtime: RuntimeConfig, notes: list[str]) -> torch.device:
    if runtime.target == "linux_gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "runtime.target=linux_gpu: torch sees no CUDA device; install a CUDA build of torch or use cpu"
        )
    if runtime.device != "auto":
        return _named_device(runtime)
    if runtime.target == "cpu":
        return torch.device("cpu")
    if runtime.target in ("auto", "linux_gpu") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if runtime.target == "mac":
        notes.append("runtime.target=mac: no Metal device here, so the CPU is used")
    return torch.device("cpu")


def _named_device(runtime: RuntimeConfig) -> torch.device:
    try:
        device = torch.device(runtime.device)
    except RuntimeError as error:
        raise ConfigError(
            f"runtime.device={runtime.device} is no torch device; try cpu, mps, cuda or cuda:1"
        ) from error
    kinds = {"auto": ("cpu", "mps", "cuda"), "linux_gpu": ("cuda",), "mac": ("mps", "cpu"), "cpu": ("cpu",)}
    if device.type not in kinds[runtime.target]:
        raise ConfigError(
            f"runtime.device={runtime.device} is not for runtime.target={runtime.target}, "
            f"which takes {' or '.join(kinds[runtime.target])}"
        )
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        raise ConfigError(f"runtime.device={runtime.device}: torch sees {there} such devices here")
    return device


def _param_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _compute_dtype(name: str, param_dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    if name == "none":
        return None
    if name != "auto":
        if param_dtype != torch.float32:
            raise ConfigError(
                f"runtime.mixed_precision={name} multiplies over float32 parameters, but they are {param_dtype}: "
                "set model.dtype=float32, or runtime.mixed_precision=auto"
            )
        return PRECISIONS[name]
    if param_dtype != torch.float32:
        return None
    return torch.bfloat16 if device.type == "cuda" or (device.type == "cpu" and native_bf16()) else None


def native_bf16() -> bool:
    """True where this CPU has instructions for bfloat16 products (AVX512-BF16 or AMX)."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _attention(name: str, param_dtype: torch.dtype, compute_dtype: torch.dtype | None, device: torch.device) -> str:
    flash = device.type == "cuda" and find_spec("flash_attn") is not None
    half = (compute_dtype or param_dtype).itemsize == 2
    if name == "flash_attention_2" and not (flash and half):
        raise ConfigError(
            "model.attention=flash_attention_2 needs CUDA, 16-bit products and the package flash-attn "
            "(pip install flash-attn); sdpa works everywhere"
        )
    if name != "auto":
        return name
    return "flash_attention_2" if flash and half else "sdpa"


def prepare_process(runtime: RuntimeConfig) -> None:
    """Sets torch's CPU threads and the allocator. Called once, before anything big is allocated.

    Raises:
        ConfigError: more threads than torch could start: it would end the process.
    """
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if runtime.threads > most:
        raise ConfigError(f"runtime.threads={runtime.threads}: at most {most} here; 0 takes all {os.cpu_count()} cores")
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if runtime.tune_malloc:
        tune_malloc()


def tune_malloc() -> bool:
    """Tells glibc to keep freed memory instead of giving it back; True where it did.

    A step allocates and frees the same large tensors again and again; by default each goes back to the kernel and
    faults in page by page the next time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # The trim threshold is a size_t inside, so -1 means never.
    return bool(mallopt(M_MMAP_THRESHOLD, GIB)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
