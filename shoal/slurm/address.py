"""The address of a node at which the others reach it: one, and the same for head and workers."""

from __future__ import annotations

import os
import re
import socket
import subprocess

import psutil

from shoal.errors import ConfigError

SCONTROL_SECONDS = 20.0


def node_address() -> str:
    """The IPv4 address of SHOAL_INTERFACE where that is set, else the one that SLURM has for this node.

    Raises:
        ConfigError: there is none, or it is none of this machine's.
    """
    interface = os.environ.get("SHOAL_INTERFACE")
    return address_of(interface) if interface else of_slurm(os.environ["SLURMD_NODENAME"])


def address_of(interface: str) -> str:
    """The first IPv4 address of a network card. Raises ConfigError where it has none."""
    cards = psutil.net_if_addrs()
    found = [one.address for one in cards.get(interface, []) if one.family == socket.AF_INET]
    if not found:
        raise ConfigError(
            f"SHOAL_INTERFACE={interface}: no IPv4 address on that network card; there are {', '.join(sorted(cards))}"
        )
    return found[0]


def of_slurm(node: str) -> str:
    """What SLURM's NodeAddr of a node resolves to. Raises ConfigError where this machine does not have that address."""
    shown = subprocess.run(
        ["scontrol", "show", "node", "--oneliner", node], capture_output=True, text=True, timeout=SCONTROL_SECONDS
    )
    match = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    name = match.group(1) if match else node
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
        with socket.socket() as door:
            door.bind((address, 0))
    except OSError as error:
        raise ConfigError(
            f"{name} is no address of this machine ({error}): set SHOAL_INTERFACE in the site's file to the network "
            "card by which the nodes reach each other"
        ) from error
    return address
