"""Connections that are opened in advance."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from urllib3 import exceptions as broken
from urllib3.connectionpool import HTTPConnectionPool

from builder.parallel import Stop, for_each

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection


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
