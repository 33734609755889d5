"""How a cluster or a container gets a profile's models at run time: manifests that are rendered from the profile and its lock."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.errors import UsageError
from builder.lock import Lock
from builder.places.destination import DEFAULT_TAG, Destination, Repository
from builder.profile import Model, Profile
from builder.profile.starter import templates

KINDS: Mapping[str, str] = {
    "init": "an init container pulls the models into the pod before the service starts",
    "sidecar": "a sidecar keeps the models on the node, for all pods there",
    "volume": "the node mounts the models as images; no client is needed",
    "entrypoint": "the container pulls the models itself before it becomes the service",
    "lazy": "the service reads the models itself, by the tensor",
}
"""What recipes there are, and what they do."""

_WITHOUT_CLIENT = ("volume", "lazy")
_PORT = 8081
_CLIENT = ".pyz"
_USER_FORM = re.compile(r"(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Places:
    """Where things are at run time, where that is not what the profile says: the image's reference, the repository of the
    models, and the client's path in the image."""

    image: str | None = None
    models: str | None = None
    client: str | None = None


def recipe(kind: str, profile: Profile, lock: Lock | None, names: Sequence[str], places: Places) -> str:
    """The recipe of one of `KINDS` for these models of a profile (all, where none is named), as YAML.

    A model that `lock` knows is named by its digest, too. Raises `UsageError` for what neither profile nor `places` say.
    """
    models = _chosen(profile, names)
    image = _image(profile, places)
    repository = _repository(profile, places)
    if kind == "volume" and (plain := [model.name for model in models if not model.image]):
        raise UsageError(
            f"{', '.join(plain)}: not published as an image, which a node could mount",
            hint="add `image: true` to the model in the profile",
        )
    digests = {locked.name: locked.manifest for locked in lock.models} if lock else {}
    user = _USER_FORM.fullmatch(profile.image.user)
    values: dict[str, Any] = {
        "service": _label(profile.name),
        "image": image,
        "client": "" if kind in _WITHOUT_CLIENT else places.client or _client(profile),
        "entrypoint": [*profile.image.entrypoint, *profile.image.cmd],
        "ports": [{"number": port.number, "protocol": port.protocol.upper()} for port in profile.image.ports],
        "user": int(user[1]) if user else None,
        "group": int(user[2] or user[1]) if user else None,
        "models": [
            _model(model, repository, digests.get(model.name), at) | {"variable": _variable(model, models)}
            for at, model in enumerate(models)
        ],
        "folders": sorted({posixpath.dirname(model.place) for model in models}),
    }
    if kind == "entrypoint" and not values["entrypoint"]:
        raise UsageError(
            f"{profile.name}: the profile has no entrypoint that could follow",
            hint="add image.entrypoint to the profile",
        )
    # Only recipes pay for the import of jinja2.
    from builder.render import render

    name = f"recipes/{kind}.yaml.j2"
    return render((templates() / name).read_text(encoding="utf-8"), values, name).decode()


def _chosen(profile: Profile, names: Sequence[str]) -> list[Model]:
    known = {model.name: model for model in profile.models}
    if not known:
        raise UsageError(f"{profile.name}: the profile has no models", hint="add `models:` to it")
    for name in names:
        if name not in known:
            raise UsageError(f"{profile.name} has no model {name!r}", hint=f"it has {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] or list(known.values())


def _image(profile: Profile, places: Places) -> str:
    text = places.image or profile.publish.to
    named = Destination.parse(text) if text else None
    if not isinstance(named, Repository):
        raise UsageError(
            f"{profile.name}: the profile does not say in which registry its image is",
            hint="add publish.to: HOST/REPOSITORY[:TAG] to it, or --image HOST/REPOSITORY[:TAG]",
        )
    return str(named if named.tag or named.digest else named.tagged(DEFAULT_TAG))


def _repository(profile: Profile, places: Places) -> Repository:
    """Where the models are: as said, else where the profile says, else where the image is."""
    text = places.models or profile.publish.models or places.image or profile.publish.to
    named = Destination.parse(text).place if text else None
    if not isinstance(named, Repository):
        raise UsageError(
            f"{profile.name}: the profile does not say in which registry its models are",
            hint="add publish.models: HOST/REPOSITORY to it, or --models HOST/REPOSITORY",
        )
    return named


def _client(profile: Profile) -> str:
    found = [file.to for file in profile.files if file.to.endswith(_CLIENT)]
    if not found:
        raise UsageError(
            f"{profile.name}: the image has no client that could pull a model",
            hint="`build model client -o build-model-pull.pyz`, and add to the profile's files: "
            "{from: build-model-pull.pyz, to: /opt/build-model-pull.pyz}; or say where it is with --client",
        )
    return found[0]


def _model(model: Model, repository: Repository, digest: str | None, at: int) -> dict[str, object]:
    tag = f"model-{model.name}"
    reference = str(repository.tagged(tag))
    short = digest.partition(":")[2][:12] if digest else "latest"
    return {
        "name": model.name,
        "label": _label(tag),
        "place": model.place,
        "reference": f"{reference}@{digest}" if digest else reference,
        "image": str(repository.tagged(f"{tag}-image")),
        "folder": f"models/{model.name}-{short}",
        "port": _PORT + at,
    }


def _variable(model: Model, models: Sequence[Model]) -> str:
    """The environment variable that says which model is meant: `MODEL` where there is but one."""
    return "MODEL" if len(models) == 1 else "MODEL_" + re.sub(r"[^A-Z0-9]+", "_", model.name.upper())


def _label(name: str) -> str:
    """A name as Kubernetes allows it for containers and volumes (RFC 1123)."""
    return re.sub(r"[^a-z0-9]+", "-", name)[:63].strip("-")
