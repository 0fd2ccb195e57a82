"""How completions are sampled, from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.config import ShoalConfig
from shoal.engines.base import SamplingParams


def sampling_params(cfg: ShoalConfig, overrides: Mapping[str, Any] | None = None) -> SamplingParams:
    """The configuration's sampling, with overrides by field name."""
    values = {**vars(cfg.sampling), **(overrides or {})}
    return SamplingParams(**{**values, "stop": tuple(values["stop"])})
