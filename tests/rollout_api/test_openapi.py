"""schemathesis reads the server's OpenAPI description and tries what it can think of: nothing may be a 500."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error


@pytest.mark.slow
def test_no_request_is_a_server_error(running_server):
    schema = schemathesis.openapi.from_url(f"{running_server.url}/openapi.json", wait_for_schema=60)
    cases = st.one_of([each.ok().as_strategy() for each in schema.get_all_operations()])

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(cases)
    def try_it(case):
        case.call_and_validate(checks=[not_a_server_error], timeout=60)

    try_it()
    assert httpx.get(f"{running_server.url}/healthz", timeout=60).status_code == 200


def test_every_path_of_the_protocol_is_described(running_server):
    paths = httpx.get(f"{running_server.url}/openapi.json", timeout=60).json()["paths"]
    atropos = {
        "/",
        "/register",
        "/register-env",
        "/disconnect-env",
        "/wandb_info",
        "/info",
        "/batch",
        "/latest_example",
    }
    atropos |= {"/scored_data", "/scored_data_list", "/status", "/status-env", "/reset_data"}
    assert set(paths) == atropos | {"/ack", "/healthz", "/metrics"}
