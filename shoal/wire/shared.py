"""Weights that two processes hold in the same memory, and the bridge: the file that says where and how.

On a CPU it is a file in memory that both map; on a GPU the learner opens vLLM's own allocations by CUDA IPC.
"""

from __future__ import annotations

import json
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.errors import EngineError
from shoal.files import write_atomically

BRIDGE_FILE = "shoal_bridge.json"
FORMAT = 1
ALIGNMENT = 64  # bytes


@dataclass
class Bridge:
    """Where vLLM's parameters are.

    `parameters` by vLLM's name: shape, dtype, and either the offset in the file `memory` or `ipc`, a CUDA handle.
    `packed` says which Hugging Face modules a fused one holds, in order. `url` is the server's, where there is one.
    """

    model: str
    device: str
    parameters: dict[str, dict[str, Any]]
    packed: dict[str, list[str]]
    memory: str = ""
    nbytes: int = 0
    url: str = ""
    format: int = field(default=FORMAT)

    def write(self, folder: Path) -> None:
        write_atomically(folder / BRIDGE_FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Bridge:
        """Raises EngineError where there is none that can be read."""
        file = folder / BRIDGE_FILE
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError(f"{file} cannot be read ({error}): start the server again with this bridge") from error
        if row.get("format") != FORMAT:
            raise EngineError(
                f"{file} has format {row.get('format')}, this Shoal reads {FORMAT}: start the server with this Shoal"
            )
        return cls(**row)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes by vLLM's name."""
        return {name: tuple(entry["shape"]) for name, entry in self.parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """vLLM's parameters, in the memory where vLLM has them.

        Raises:
            EngineError: the memory is gone, or of another size.
        """
        if self.device == "cuda":
            return {name: _open_cuda(entry) for name, entry in self.parameters.items()}
        file = Path(self.memory)
        if not file.is_file() or file.stat().st_size < self.nbytes:
            raise EngineError(
                f"the memory of the bridge, {self.memory}, is gone: its server has ended; start that again"
            )
        room = torch.from_file(self.memory, shared=True, size=self.nbytes, dtype=torch.uint8)
        return {name: _view(room, entry) for name, entry in self.parameters.items()}


def memory_file(folder: Path) -> Path:
    """The file that holds a bridge's memory: in /dev/shm where there is one, named after the folder."""
    shm = Path("/dev/shm")
    place = shm if shm.is_dir() else Path(tempfile.gettempdir())
    return place / f"shoal_{sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"


@torch.no_grad()
def share_on_cpu(
    parameters: Mapping[str, Tensor], folder: Path, model: str, packed: Mapping[str, list[str]], url: str
) -> Bridge:
    """Moves parameters into shared memory, in place, and writes the bridge."""
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    for name, parameter in parameters.items():
        entries[name] = {"shape": list(parameter.shape), "dtype": dtype_name(parameter), "offset": end}
        end += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
    file = memory_file(folder)
    # A new file: whoever still maps an old one of this name keeps it to himself.
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    room = torch.from_file(str(file), shared=True, size=end, dtype=torch.uint8)
    for name, parameter in parameters.items():
        view = _view(room, entries[name])
        view.copy_(parameter)
        parameter.data = view
    bridge = Bridge(model, "cpu", entries, {key: list(value) for key, value in packed.items()}, str(file), end, url)
    bridge.write(folder)
    return bridge


@torch.no_grad()
def adopt_on_cpu(parameters: Mapping[str, Tensor], folder: Path, url: str) -> Bridge:
    """Puts parameters where an earlier server of this bridge had them: they take the values that are there.

    Raises:
        EngineError: the bridge is of another model.
    """
    bridge = Bridge.read(folder)
    if bridge.layout() != {name: tuple(parameter.shape) for name, parameter in parameters.items()}:
        raise EngineError(f"the bridge in {folder} is of another model: remove the folder")
    for name, view in bridge.tensors().items():
        parameters[name].data = view
    bridge.url = url
    bridge.write(folder)
    return bridge


def share_on_cuda(
    parameters: Mapping[str, Tensor], folder: Path, model: str, packed: Mapping[str, list[str]], url: str
) -> Bridge:
    """Writes a bridge with CUDA IPC handles of the parameters, which stay where they are."""
    entries = {
        name: {"shape": list(one.shape), "dtype": dtype_name(one), "ipc": _handle(one)}
        for name, one in parameters.items()
    }
    bridge = Bridge(model, "cuda", entries, {key: list(value) for key, value in packed.items()}, url=url)
    bridge.write(folder)
    return bridge


def dtype_name(tensor: Tensor) -> str:
    """The dtype's name without `torch.`."""
    return str(tensor.dtype).removeprefix("torch.")


def _view(room: Tensor, entry: Mapping[str, Any]) -> Tensor:
    dtype = getattr(torch, entry["dtype"])
    nbytes = prod(entry["shape"]) * dtype.itemsize
    return room[entry["offset"] : entry["offset"] + nbytes].view(dtype).view(entry["shape"])


# torch.multiprocessing makes and opens the handles; its arguments are carried as JSON, bytes in base 64.

HANDLE = (
    "device",
    "handle",
    "storage_size",
    "storage_offset",
    "ref_counter",
    "ref_counter_offset",
    "event",
    "event_sync",
)


def _handle(parameter: Tensor) -> dict[str, Any]:
    shared = parameter.detach()._typed_storage()._share_cuda_()
    values = {
        key: b64encode(value).decode() if isinstance(value, bytes) else value
        for key, value in zip(HANDLE, shared, strict=True)
    }
    return {**values, "offset": parameter.storage_offset(), "stride": list(parameter.stride())}


def _open_cuda(entry: Mapping[str, Any]) -> Tensor:
    from torch.multiprocessing.reductions import rebuild_cuda_tensor  # noqa: PLC0415 - CUDA only

    ipc = {key: b64decode(value) if isinstance(value, str) else value for key, value in entry["ipc"].items()}
    return rebuild_cuda_tensor(
        Tensor,
        torch.Size(entry["shape"]),
        tuple(ipc["stride"]),
        ipc["offset"],
        torch.storage.TypedStorage,
        getattr(torch, entry["dtype"]),
        ipc["device"],
        ipc["handle"],
        ipc["storage_size"],
        ipc["storage_offset"],
        False,
        ipc["ref_counter"],
        ipc["ref_counter_offset"],
        ipc["event"],
        ipc["event_sync"],
    )
