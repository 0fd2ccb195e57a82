"""The machine: device, precision and attention implementation, and what the process is set to."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from logging import getLogger
from time import perf_counter

import torch

from shoal.config import ShoalConfig
from shoal.config.nodes.model import ModelConfig
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.devices.plan import DevicePlan, plan_devices
from shoal.devices.visible import visible_devices
from shoal.errors import ConfigError

logger = getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

# mallopt's parameter numbers, from glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
GIB = 2**30
SMALL_MODEL = 3e7  # parameters; freed memory of larger models' tensors is not kept, since it would break into pieces
PRODUCT = 1024  # rows and columns of the matrices whose product is timed
MOST_THREADS = 256


@dataclass(frozen=True)
class Runtime:
    """What a run computes with.

    `compute_dtype` is the dtype of matrix products over float32 parameters; None: that of the parameters. `notes` are
    lines for the user, `plan` says who is on which GPU.
    """

    device: torch.device
    param_dtype: torch.dtype
    compute_dtype: torch.dtype | None
    attention: str
    notes: list[str] = field(default_factory=list)
    plan: DevicePlan = field(default_factory=DevicePlan)

    def of_reference(self) -> Runtime:
        """The same for a reference model: on the device that the plan gives it, or the learner's."""
        if not self.plan.reference:
            return self
        return replace(self, device=torch.device(self.plan.kind, self.plan.reference[0]))

    def of_engine(self, number: int) -> torch.device:
        """The device of the number-th of engine.processes, which sees the same GPUs as this process."""
        if not self.plan.engine:
            return self.device
        return torch.device(self.plan.kind, self.plan.engine[number][0])

    @property
    def master_weights(self) -> bool:
        """True where parameters have 16 bits, so that the optimizer keeps float32 copies."""
        return self.param_dtype.itemsize == 2

    @property
    def loss_scaling(self) -> bool:
        """True where gradients pass through float16, whose small values need a scaled loss."""
        return torch.float16 in (self.param_dtype, self.compute_dtype)


def planned_runtime(cfg: ShoalConfig) -> Runtime:
    """The runtime of a run whose parts are placed on this machine's GPUs: see `resolve_runtime` and `plan_devices`.

    Raises:
        ConfigError: the machine does not have what the configuration asks for.
    """
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    cuda = runtime.device.type == "cuda"
    plan = plan_devices(cfg, visible_devices() if cuda else (), runtime.device.type, runtime.device.index or 0)
    device = torch.device("cuda", plan.learner[0]) if cuda else runtime.device
    return replace(runtime, device=device, plan=plan)


def resolve_runtime(runtime: RuntimeConfig, model: ModelConfig) -> Runtime:
    """Decides device, precision and attention implementation.

    On CUDA the default is bfloat16 parameters with float32 master weights and float32 gradient sums in the optimizer:
    decoding reads half the bytes and casts nothing, and no update is lost to rounding. `model.dtype=float32` keeps
    float32 parameters and computes under autocast instead. Elsewhere parameters are float32; a CPU with native
    bfloat16 instructions multiplies matrices in it where a product that is timed here is faster for it.

    Raises:
        ConfigError: the target, the device or the attention implementation is not there.
    """
    notes: list[str] = []
    device = _device(runtime, notes)
    param_dtype = _param_dtype(model.dtype, device)
    compute_dtype = _compute_dtype(runtime.mixed_precision, param_dtype, device, notes)
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


def _compute_dtype(name: str, param_dtype: torch.dtype, device: torch.device, notes: list[str]) -> torch.dtype | None:
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
    if device.type == "cpu" and native_bf16():
        seconds = product_seconds(torch.bfloat16), product_seconds(torch.float32)
        half, single = (f"{2 * PRODUCT**3 / one / 1e9:.0f} GFLOP/s" for one in seconds)
        faster = seconds[0] < seconds[1]
        chosen = "bfloat16, which is faster" if faster else "float32, since bfloat16 is not faster"
        notes.append(
            f"matrix products run in {chosen} here ({half} in bfloat16, {single} in float32); "
            "runtime.mixed_precision=none or bf16 decides otherwise"
        )
        return torch.bfloat16 if faster else None
    return torch.bfloat16 if device.type == "cuda" else None


@cache
def product_seconds(dtype: torch.dtype) -> float:
    """The shortest time that one product of square matrices takes on this CPU. Timed once for each process."""
    left, right = (torch.ones(PRODUCT, PRODUCT, dtype=dtype) for _ in range(2))
    found = []
    for _ in range(6):
        started = perf_counter()
        torch.mm(left, right)
        found.append(perf_counter() - started)
    return min(found)


def native_bf16() -> bool:
    """True where this CPU has instructions for bfloat16 products (AVX512-BF16 or AMX), which need not be faster."""
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
    if name == "varlen" and not (device.type == "cuda" and half):
        raise ConfigError("model.attention=varlen needs CUDA and 16-bit products; sdpa works everywhere")
    if name != "auto":
        return name
    return "varlen" if device.type == "cuda" and half else "sdpa"


def prepare_process(runtime: RuntimeConfig) -> None:
    """Sets torch's CPU threads. Called once, before anything big is computed.

    Raises:
        ConfigError: more threads than torch could start: it would end the process.
    """
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if runtime.threads > most:
        raise ConfigError(f"runtime.threads={runtime.threads}: at most {most} here; 0 takes all {os.cpu_count()} cores")
    if runtime.threads:
        torch.set_num_threads(runtime.threads)


def prepare_allocator(runtime: RuntimeConfig, parameters: int) -> bool:
    """Lets the process keep freed memory where a model has so few parameters that this is little; True where it does.

    With tensors of hundreds of MiB the kept memory breaks into pieces that fit nothing: a step of a 135M model took 10
    GiB with it and 4 without, in the same time.
    """
    return runtime.tune_malloc and parameters < SMALL_MODEL and tune_malloc()


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
