"""atroposlib's own HTTP tests against this server: all 36 pass."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from atropos_python import atropos_python

MODULES = ("test_api_legacy", "test_api_compression", "test_api_messages_handling")
TESTS = 36


@pytest.mark.slow
def test_atroposlibs_http_tests_pass(server, tmp_path):
    command = [atropos_python(), "-m", "pytest", "-q", "-p", "atropos_plugin", "-p", "no:cacheprovider", "--pyargs"]
    ended = subprocess.run(
        [*command, *(f"atroposlib.tests.{module}" for module in MODULES)],
        env={
            **os.environ,
            "SHOAL_TEST_API_URL": str(server.base_url).rstrip("/"),
            "PYTHONPATH": str(Path(__file__).parent),
            "HF_HUB_OFFLINE": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert f"{TESTS} passed" in ended.stdout
