"""What is read of a published image, whoever published it: any document may say anything."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import Layout
from world import World, run

from builder.cli import inspect
from builder.errors import BuilderError
from builder.examine import Examined, examine
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.listing import LayoutError
from builder.oci.spec import Descriptor

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True, repr=False)
class Liar:
    """A place whose documents are others than their digests say; what reads them must not fall over."""

    top: Descriptor
    documents: dict[str, Any]
    blobs: dict[str, bytes]

    def resolve(self, reference: str | None) -> Descriptor:
        if reference is None:
            return self.top
        if reference not in self.documents:
            raise LayoutError("it is not there")
        return Descriptor(spec.MANIFEST, Digest.parse(reference), 1)

    def find(self, tag: str) -> Descriptor | None:
        return None

    def manifest(self, descriptor: Descriptor) -> bytes:
        if str(descriptor.digest) not in self.documents:
            raise LayoutError("it is not there")
        return json.dumps(self.documents[str(descriptor.digest)]).encode()

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[BinaryIO]:
        if str(descriptor.digest) in self.documents:
            return closing(io.BytesIO(self.manifest(descriptor)))
        if str(descriptor.digest) not in self.blobs:
            raise LayoutError("it is not there")
        return closing(io.BytesIO(self.blobs[str(descriptor.digest)]))

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        return ()

    def __repr__(self) -> str:
        return "Liar"


@pytest.fixture(scope="module")
def honest(world: World, small: Path) -> Liar:
    """The small image, as it is."""
    layout = Layout(small.parent / "out")
    done = run(
        ["inspect", f"oci:{layout.root}", "--format=json"], small.parent, world.environment(world.root / "cache")
    )
    top = Digest.parse(done.json["digest"])
    index = layout.json(top)
    image, soci = (Digest.parse(entry["digest"]) for entry in index["manifests"])
    config = Digest.parse(layout.json(image)["config"]["digest"])
    ztocs = [Digest.parse(item["digest"]) for item in layout.json(soci)["layers"]]
    return Liar(
        Descriptor(spec.INDEX, top, 1),
        {str(digest): layout.json(digest) for digest in (top, image, soci, config)},
        {str(digest): layout.path(digest).read_bytes() for digest in ztocs},
    )


def shown(found: Examined) -> None:
    """All that is printed of it can be made."""
    json.dumps(inspect._document(found))
    for image in found.images:
        inspect._layers(image)
        inspect._lazy(image, ())
        inspect._settings(image.config.get("config", {}))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@given(st.integers(0, 1 << 20), JSON)
@settings(deadline=None, max_examples=250)
def test_any_value_anywhere(honest: Liar, where: int, value: Any) -> None:
    """It is an image still, or it is said what it is not."""
    documents = copy.deepcopy(honest.documents)
    every = list(places(documents))[1:]
    *path, last = every[where % len(every)]
    place: Any = documents
    for key in path:
        place = place[key]
    place[last] = value
    try:
        shown(examine(replace(honest, documents=documents), None))
    except BuilderError:
        pass
    except Exception as error:
        pytest.fail(f"{path}, {last}: {error!r}")  # and not all that hypothesis would print


@pytest.mark.parametrize("said", [None, {}, "text", [1]])
def test_an_image_that_says_nothing_of_containers(honest: Liar, said: object) -> None:
    documents = copy.deepcopy(honest.documents)
    (config,) = (document for document in documents.values() if "rootfs" in document)
    config["config"] = said
    if said:
        with pytest.raises(BuilderError, match="what it says of containers is no object"):
            examine(replace(honest, documents=documents), None)
    else:
        shown(examine(replace(honest, documents=documents), None))


def test_indexes_of_others(honest: Liar) -> None:
    """Attestations and artifacts are no images, a second image of a platform is not lost, an index in itself ends."""
    documents = copy.deepcopy(honest.documents)
    top = documents[str(honest.top.digest)]
    image, soci = top["manifests"]
    other = Digest.of(b"other")
    documents[str(other)] = documents[image["digest"]]
    attestation = image | {
        "digest": str(Digest.of(b"gone")),
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    bare = {key: value for key, value in soci.items() if key != "artifactType"}  # as skopeo 1.9 copies it
    top["manifests"] = [image, attestation, bare, image | {"digest": str(other)}]
    found = examine(replace(honest, documents=documents), None)
    assert [item.soci for item in found.images] == [Digest.parse(soci["digest"])] * 2
    assert list(inspect._document(found)["platforms"]) == ["linux/amd64", f"linux/amd64 {other}"]  # type: ignore[call-overload]
    for entries, message in (([soci], "an index without an image"), ([], "an index without an image")):
        top["manifests"] = entries
        with pytest.raises(BuilderError, match=message):
            examine(replace(honest, documents=documents), None)
    top["manifests"] = [{"mediaType": spec.INDEX, "digest": str(honest.top.digest), "size": 1}]
    with pytest.raises(BuilderError, match="too deep"):
        examine(replace(honest, documents=documents), None)
