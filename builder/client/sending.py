"""Connections over which pieces of local files are sent by the kernel, without a copy in this process."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, BinaryIO

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


@dataclass(frozen=True)
class Slice:
    """`count` bytes of an open file from `offset`."""

    file: BinaryIO
    offset: int
    count: int


class _Connection(HTTPConnection):
    """A connection without encryption."""

    def send(self, data: Any) -> None:
        if not isinstance(data, Slice):
            super().send(data)
            return
        assert isinstance(self.sock, socket.socket)
        sent = self.sock.sendfile(data.file, data.offset, data.count)
        if sent != data.count:
            raise OSError("the file became shorter")  # the next attempt finds that out


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


def equip(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    """The same manager, whose connections without encryption take a `Slice`."""
    manager.pool_classes_by_scheme = {"http": _Pool, "https": HTTPSConnectionPool}
    return manager
