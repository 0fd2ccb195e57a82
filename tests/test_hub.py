"""Without a network the Hub is not tried for half a minute: that is said at once."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from shoal import hub
from shoal.config.nodes.model import ModelConfig
from shoal.errors import ConfigError
from shoal.models.loading import load_tokenizer


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub at a port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for module in ("huggingface_hub.constants", "datasets.config"):
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            if hasattr(sys.modules.get(module), name):
                monkeypatch.setattr(sys.modules[module], name, False)
    hub.hub_answers.cache_clear()
    yield
    hub.hub_answers.cache_clear()


def test_a_model_of_the_hub_is_refused_at_once_with_what_was_asked_for(caplog: pytest.LogCaptureFixture):
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(ModelConfig(name="somebody/a-model-that-is-not-cached"))
    line = str(caught.value)
    assert "somebody/a-model-that-is-not-cached" in line and "without a network" in line and "\n" not in line
    assert "127.0.0.1 cannot be reached" in caplog.text
    assert constants.HF_HUB_OFFLINE is True and os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_that_answers_and_a_local_path_leave_everything_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
):
    hub.look_for_hub(str(tmp_path))
    hub.look_for_hub("/no/such/folder")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub.look_for_hub("somebody/a-model")
    assert constants.HF_HUB_OFFLINE is False


def test_a_proxy_is_trusted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert hub.hub_answers()
