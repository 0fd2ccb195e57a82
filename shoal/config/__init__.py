"""Typed configuration. Nothing in here imports torch."""

from shoal.config.compose import load_config
from shoal.config.root import ShoalConfig

__all__ = ["ShoalConfig", "load_config"]
