"""From a tier's name to the tier; one that is missing is an error, never a weaker one."""

from __future__ import annotations

import os
import shutil
import subprocess

from shoal.errors import ConfigError
from shoal.rewards.sandbox.bubblewrap import Bubblewrap
from shoal.rewards.sandbox.launch import Tier
from shoal.rewards.sandbox.process import Process

TIERS = ("bubblewrap", "process")


def find_tier(name: str) -> Tier:
    """The tier of that name. Whether it holds here is for `Sandbox` to try.

    Raises:
        ConfigError: there is no such tier, or what it needs is not installed.
    """
    if name == "process":
        return Process()
    if name != "bubblewrap":
        raise ConfigError(f"there is no sandbox tier {name!r}; there are {' and '.join(TIERS)}")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise ConfigError(
            "tier bubblewrap was asked for and bwrap is not installed: apt-get install bubblewrap "
            "(tier process needs nothing, and holds no hostile program)"
        )
    manual = subprocess.run([bwrap, "--help"], capture_output=True, text=True, timeout=60, check=False).stdout
    if "--disable-userns" not in manual:
        raise ConfigError(f"tier bubblewrap needs bubblewrap 0.8 or later, and {bwrap} is older: install a newer one")
    if os.geteuid() != 0:
        return Bubblewrap(bwrap, None)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ConfigError("tier bubblewrap, started as root, needs setpriv: apt-get install util-linux")
    return Bubblewrap(bwrap, setpriv)
