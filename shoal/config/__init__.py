"""Typed configuration. Nothing in here imports torch."""

from shoal.config.root import ShoalConfig

__all__ = ["ShoalConfig"]
