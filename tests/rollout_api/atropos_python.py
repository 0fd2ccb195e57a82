"""Where atroposlib 0.4.0 is installed: it does not fit beside Shoal's packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "SHOAL_ATROPOS_PYTHON"


def atropos_python() -> str:
    """Its Python: SHOAL_ATROPOS_PYTHON, or .venv-atropos at the repository's root. Without it the test is skipped."""
    path = os.environ.get(VARIABLE) or str(Path(__file__).parents[2] / ".venv-atropos" / "bin" / "python")
    if not Path(path).exists():
        pytest.skip(f"atroposlib is not installed: make .venv-atropos/ready, or name its Python in {VARIABLE}")
    return path
