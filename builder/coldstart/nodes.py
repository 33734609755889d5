"""Settings of a node's snapshotter: read as its administrator wrote them, and laid under what a measured start has to have."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from builder.errors import BuilderError

OWN = (
    ("content_store", "containerd_address"),
    ("cri_keychain",),
    ("debug_address",),
    ("fuse", "log_fuse_operations"),
    ("http",),
    ("kubeconfig_keychain",),
    ("log_file_access",),
    ("metrics_address",),
    ("metrics_network",),
    ("no_prometheus",),
    ("resolver",),
)
"""What is never taken from a node's settings: addresses of daemons and registries, credentials, and what watches a start. Nor how
often requests are repeated: soci-snapshotter 0.14 asks for sizes of layers over TLS alone, and would repeat that for eight
seconds where a registry on the loopback has none."""

_MOST = 1 << 20


class NodeConfigError(BuilderError):
    """A file has no settings of a snapshotter."""

    hint = "write TOML as the snapshotter reads it; `build node-config soci` prints some"


def read(path: Path) -> Mapping[str, Any]:
    """The settings in a file. Raises `NodeConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise NodeConfigError(f"{path}: larger than {_MOST >> 20} MiB")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise NodeConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NodeConfigError(f"{path}: no TOML: {error}") from error


def laid_over(own: str, settings: Mapping[str, Any] | None) -> str:
    """The TOML text `own` if there are no `settings`; else these, but for `OWN`, which `own` decides."""
    if settings is None:
        return own
    merged = json.loads(json.dumps(settings, default=_time))
    decided = tomllib.loads(own)
    for place in OWN:
        _put(merged, place, _at(decided, place))
    return "".join(f"{_toml(name)} = {_toml(value)}\n" for name, value in merged.items())


def is_parallel(settings: Mapping[str, Any] | None) -> bool:
    """Whether layers are pulled side by side by the snapshotter, which does that over TLS alone."""
    place = ("pull_modes", "parallel_pull_unpack")
    names = ("enable", "experimental_parallel_pull_as_fallback")
    return any(_at(settings, (*place, name)) is True for name in names)


def _at(document: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _put(document: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """Sets what lies at a place, or removes it if the value is None."""
    *above, last = place
    for name in above:
        inner = document.get(name)
        if not isinstance(inner, dict):
            if value is None:
                return
            inner = document[name] = {}
        document = inner
    document.pop(last, None)
    if value is not None:
        document[last] = value


def _toml(value: Any) -> str:
    """A value in one line, which TOML allows for all of them. Strings are those of JSON, which has the same escapes."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(name)} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _time(value: object) -> str:
    """No snapshotter has a setting that is a time."""
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    raise TypeError
