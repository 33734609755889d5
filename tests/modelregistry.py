"""Small models in a registry: how they get there, and how they come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import judges
import modelworld
from registryworld import repository

from builder.models import placing
from builder.models.cache import Remembering
from builder.models.publish import publish
from builder.models.pull import Published, Pulled, Pulling
from builder.places.delivery import Sink
from builder.progress import Silent
from builder.store import Store


@contextmanager
def serving(folder: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    """A registry below `folder` that holds the model `some/image:v1` of `files`; its address."""
    with judges.registry("docker-registry", folder / "registry") as address:
        push(address, folder / "files", files)
        yield address


def push(address: str, folder: Path, files: Mapping[str, bytes], tag: str = "v1") -> str:
    """Publishes a model; the digest of its manifest."""
    model = modelworld.small_model(folder, files)
    publish(model, [Sink(address, repository(address), (tag,))], Silent())
    return str(model.manifest.digest)


def published(address: str, store: Store, reference: str | None = "v1", *, offline: bool = False) -> Published:
    def open() -> object:
        return repository(address, writing=False)

    return Published.open("here/model", Remembering(store, "here/model", None if offline else open), reference)  # type: ignore[arg-type]


def pull(address: str, store: Store, folder: Path, reference: str | None = "v1", **options: object) -> Pulled:
    pulling = Pulling(store, Silent(), **options)  # type: ignore[arg-type]
    pulling.begin(folder)
    return pulling.pull(published(address, store, reference), folder)


def found(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without its marker."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if name != placing.MARKER}
