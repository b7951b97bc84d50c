"""No network: whatever a test starts in Python can reach nothing but this machine.

Python imports a module of this name when it starts; `tests/conftest.py` puts its folder on the path
of the tests and of the processes that they start.
"""

import socket
from typing import Any, NoReturn

_LOCAL = ("localhost", "127.0.0.1", "::1", "", None)
_connect = socket.socket.connect
_getaddrinfo = socket.getaddrinfo


def _refuse(host: Any) -> NoReturn:
    raise OSError(f"the tests have no network, and {host!r} was asked for")


def _connect_here(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOCAL:
        _refuse(address)
    _connect(self, address)


def _getaddrinfo_here(host: Any, *arguments: Any, **options: Any) -> Any:
    return _getaddrinfo(host, *arguments, **options) if host in _LOCAL else _refuse(host)


socket.socket.connect = _connect_here
socket.getaddrinfo = _getaddrinfo_here
