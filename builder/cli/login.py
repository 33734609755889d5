"""`build login` and `build logout`: credentials for registries, tried before they are stored, as docker stores them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from builder.cli.options import common

if TYPE_CHECKING:
    from builder.cli.context import Context

_MAX_SECRET = 64 << 10
_plain_http = click.option("--plain-http", is_flag=True, help="Speak HTTP without encryption.")


@click.command(
    help="Log in to a registry; what is stored is what docker, podman and others read.",
    epilog="Example: build login localhost:5000 --user me --password-stdin < secret",
)
@click.argument("registry")
@click.option("-u", "--user", "--username", help="Who logs in; asked for if it is not given.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@_plain_http
@common
def login(context: Context, registry: str, user: str | None, password_stdin: bool, plain_http: bool) -> None:
    """Stores the credentials that the registry has taken."""
    from builder.errors import OfflineError, UsageError
    from builder.registry import Credentials, Keychain
    from builder.registry.reference import check_registry
    from builder.registry.session import check_login

    host = check_registry(registry)
    if context.settings.offline:
        raise OfflineError(f"{host}: a login needs the network")
    if password_stdin:
        if user is None:
            raise UsageError("--password-stdin needs --user", hint=f"build login {host} --user NAME --password-stdin")
        password = sys.stdin.buffer.read(_MAX_SECRET).decode(errors="surrogateescape").rstrip("\r\n")
    elif not _somebody_is_there():
        raise UsageError(
            "there is no terminal to ask for the password on",
            hint=f"build login {host} --user {user or 'NAME'} --password-stdin < FILE",
        )
    else:
        user = user if user is not None else click.prompt("User", err=True)
        password = click.prompt("Password", hide_input=True, err=True)
    if not user or not password or ":" in user:
        raise UsageError("user and password may not be empty, and a user has no colon", hint="give both")
    credentials = Credentials(user, password)
    check_login(host, context.client, credentials, plain_http=plain_http)
    place = Keychain.of(context.environ).store(host, credentials)
    click.echo(f"logged in to {host} as {user}; stored in {place}")


def _somebody_is_there() -> bool:
    """Whether a password can be asked for without showing it."""
    if sys.stdin.isatty():
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@click.command(help="Forget the credentials for a registry.", epilog="Example: build logout localhost:5000")
@click.argument("registry")
@click.pass_obj
def logout(context: Context, registry: str) -> None:
    """Removes the credentials wherever they are kept."""
    from builder.registry import Keychain
    from builder.registry.reference import check_registry

    host = check_registry(registry)
    places = Keychain.of(context.environ).erase(host)
    if not places:
        click.echo(f"there were no credentials for {host}")
    for place in places:
        click.echo(f"removed the credentials for {host} from {place}")
