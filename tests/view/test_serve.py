from __future__ import annotations

import socket

import pytest

from shoal.errors import ConfigError
from shoal.view.serve import address, how_to_reach, serve_view


def test_somebody_who_came_by_ssh_is_told_how_the_page_gets_to_their_browser(monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 50000 10.0.0.1 22")
    [line] = how_to_reach("127.0.0.1", 7600)
    assert "ssh -L 7600:127.0.0.1:7600" in line and "@10.0.0.1" in line and "http://127.0.0.1:7600/" in line
    assert how_to_reach("0.0.0.0", 7600) == [], "it can be reached as it is"
    monkeypatch.delenv("SSH_CONNECTION")
    assert how_to_reach("127.0.0.1", 7600) == []


def test_the_address_is_one_that_can_be_opened():
    assert address("127.0.0.1", 7600) == "http://127.0.0.1:7600/"
    assert address("::1", 7600) == "http://[::1]:7600/"
    assert address("0.0.0.0", 7600, "secret") == f"http://{socket.gethostname()}:7600/?token=secret"


def test_a_port_that_is_taken_is_refused_in_a_line(run_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="choose another --port"):
        serve_view([run_dir], "127.0.0.1", taken.getsockname()[1])
