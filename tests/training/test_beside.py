from __future__ import annotations

import httpx
import pytest

from shoal.training.beside import view_beside


def test_the_view_beside_a_run_answers_at_the_address_that_is_said_and_ends_with_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    said: list[str] = []
    with view_beside(tmp_path, said.append) as address:
        assert address in said[0]
        # Connections wait in the socket's queue until the process has started.
        told = httpx.get(f"{address}api/runs", timeout=60).json()
        assert told["runs"][0]["reward"] == 0.5
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, timeout=5)
