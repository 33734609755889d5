"""Connections: those over which pieces of local files are sent by the kernel, without a copy here; those opened in advance."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import urllib3
from urllib3 import exceptions as broken
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from builder.parallel import Stop, for_each

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection


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


def open_some(pool: HTTPConnectionPool, count: int, stop: Stop) -> None:
    """Opens connections that the next requests find, `count` of them idle then; one that cannot be had is left out."""
    if pool.proxy is not None:
        return  # how requests go through it is found out by the first of them
    taken = [pool._get_conn() for _ in range(count)]

    def connect(connection: BaseHTTPConnection) -> None:
        try:
            with suppress(broken.HTTPError, OSError):
                if connection.is_closed:
                    connection.connect()
        finally:
            pool._put_conn(connection)

    for_each(connect, taken, count, stop)


def equip(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    """The same manager, whose connections without encryption take a `Slice`."""
    manager.pool_classes_by_scheme = {"http": _Pool, "https": HTTPSConnectionPool}
    return manager
