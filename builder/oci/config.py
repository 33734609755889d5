"""The image configuration (image-spec, config.md) as canonical JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Platform


@dataclass(frozen=True)
class Execution:
    """The execution parameters of an image; `ports` as `8080/tcp`, `env` and `labels` as pairs."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = ""
    ports: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    stop_signal: str = ""


def image_config(
    platform: Platform,
    created: str,
    execution: Execution,
    diff_ids: Sequence[Digest],
    history: Sequence[str],
    more: Mapping[str, object] | None = None,
    before: Sequence[Mapping[str, object]] = (),
) -> bytes:
    """The configuration of an image whose layers, bottom first, have `diff_ids`; `history` says how each was made.

    `created` is an RFC 3339 time. Empty parameters are left out, as docker leaves them out. `more` are further parameters and
    `before` earlier history, both as documents, of an image that this one is built on.
    """
    settings: dict[str, object] = {
        **(more or {}),
        "Entrypoint": list(execution.entrypoint),
        "Cmd": list(execution.cmd),
        "Env": [f"{name}={value}" for name, value in execution.env],
        "User": execution.user,
        "WorkingDir": execution.workdir,
        "ExposedPorts": {port: {} for port in execution.ports},
        "Labels": dict(execution.labels),
        "StopSignal": execution.stop_signal,
    }
    document = {
        **platform.document(),
        "created": created,
        "config": {key: value for key, value in settings.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]},
        "history": [*before, *({"created": created, "created_by": line} for line in history)],
    }
    return spec.encode(document)
