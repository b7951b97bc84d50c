"""The tests have no network, so that whatever featx does by itself is done without one."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

ASK = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"


def test_nothing_can_be_reached() -> None:
    with pytest.raises(OSError, match="the tests have no network"):
        exec(ASK)
    with pytest.raises(OSError, match="the tests have no network"):
        socket.getaddrinfo("example.org", 443)


def test_nor_from_a_process_that_a_test_starts() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the tests have no network" in done.stderr
