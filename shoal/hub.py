"""Whether the Hugging Face Hub can be reached, asked once: without a network its client tries for half a minute."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from logging import getLogger
from pathlib import Path
from urllib.parse import urlsplit

logger = getLogger(__name__)

CONNECT_SECONDS = 5.0


def look_for_hub(name: str) -> None:
    """Call before `name`, a model or a data set, is loaded. Where it is not a local path and the Hub cannot be reached,
    that is said, and the cache alone is looked into for the rest of the process and by its children."""
    path = Path(name).expanduser()
    if path.is_absolute() or path.exists() or is_offline() or hub_answers():
        return
    logger.warning("%s cannot be reached: %s is looked for in the cache alone", hub_address()[0], name)
    go_offline()


def is_offline() -> bool:
    """Whether the Hub's client was told, by the environment or by `go_offline`, that there is no network."""
    from huggingface_hub import is_offline_mode  # noqa: PLC0415 slow for --help

    return bool(is_offline_mode())


def go_offline() -> None:
    """Tells the Hub's clients not to try."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module, names in (
        ("huggingface_hub.constants", ("HF_HUB_OFFLINE",)),
        ("datasets.config", ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")),
    ):
        for name in names:
            if hasattr(sys.modules.get(module), name):
                setattr(sys.modules[module], name, True)


def hub_address() -> tuple[str, int]:
    """Host and port of the Hub."""
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return url.hostname or "huggingface.co", url.port or (80 if url.scheme == "http" else 443)


@cache
def hub_answers() -> bool:
    """Whether a connection can be made; True where a proxy makes them."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.create_connection(hub_address(), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
