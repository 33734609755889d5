"""How uv is run: from no directory of its own, with nothing of the user's settings but where and how to connect."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import uv

from builder.errors import ToolError

Run = Callable[..., bytes]
"""`builder.process.run`, or what stands in for it."""

_TIMEOUT = 900.0
_SYSTEM_CERTIFICATES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))

_INDEXES = re.compile(r"UV_(DEFAULT_INDEX|EXTRA_INDEX_URL|INDEX(_.*)?|CONFIG_FILE|NO_CONFIG)")
_CONNECTION = re.compile(
    r"UV_(CACHE_DIR|NO_CACHE|HTTP_.*|REQUEST_TIMEOUT|CONCURRENT_.*|SYSTEM_CERTS|NATIVE_TLS|INSECURE_HOST"
    r"|KEYRING_PROVIDER|CREDENTIALS_DIR|OFFLINE|EXCLUDE_NEWER)"
)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that uv runs in: proxies, certificates, credentials, cache and indexes of the user.

    Settings that would change what a profile means (UV_RESOLUTION, UV_CONSTRAINT, UV_TORCH_BACKEND …) stay out, except
    UV_EXCLUDE_NEWER, which is a policy of whoever runs it.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("UV_", "PYTHON", "FORCE_COLOR", "CLICOLOR"))
        or _INDEXES.fullmatch(name)
        or _CONNECTION.fullmatch(name)
    }
    return _certificates(kept) | kept | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def _certificates(environ: Mapping[str, str]) -> dict[str, str]:
    """Where uv finds certificates: where our own client does, which by itself takes those of the system."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if environ.get(name):
            return {"SSL_CERT_FILE": environ[name]}
    return {"UV_SYSTEM_CERTS": "1"} if any(path.exists() for path in _SYSTEM_CERTIFICATES) else {}


def without_indexes(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment with uv's own index settings out of force: its variables and every uv.toml."""
    kept = {name: value for name, value in environment.items() if not _INDEXES.fullmatch(name)}
    return kept | {"UV_NO_CONFIG": "1"}


def call(run: Run, environment: Mapping[str, str], arguments: Sequence[str], *, input: bytes | None = None) -> bytes:
    """Runs uv and returns its stdout; raises `ToolError`.

    It runs in `/`, because uv takes settings from a uv.toml in the working directory and every folder above it, and in
    `/` only root can put one. The interpreter is ours: uv wants one, though nothing that it says here depends on it.
    """
    try:
        program = uv.find_uv_bin()
    except FileNotFoundError as error:
        raise ToolError("uv: not found", hint="install it again: pip install --force-reinstall uv") from error
    argv = [program, *arguments, "--python", sys.executable]
    try:
        return run(argv, input=input, env=environment, cwd=Path("/"), timeout=_TIMEOUT)
    except ToolError as error:
        if "Failed to initialize cache" in error.output:
            error.hint = "make uv's cache writable, or name another place for it with UV_CACHE_DIR or XDG_CACHE_HOME"
        raise
