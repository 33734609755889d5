"""What is in the image of each platform: packages, wheels and files, each with its digest, layer and licence. Pure.

Documents of every format are made from this value, so that they cannot contradict one another.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from builder.baseimage import LockedImage
from builder.image import Assembled
from builder.lock import (
    Lock,
    LockedDeb,
    LockedLocal,
    LockedModel,
    LockedNixPath,
    LockedPlatform,
    LockedTemplate,
    LockedWheel,
)
from builder.lock.closure import named
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Platform
from builder.plan import FilesLayer, LinksLayer, NixLayer, SystemLayer, WheelLayer, plan
from builder.sbom.licences import Licence, Told, decide

TOOL = "layerwright"
"""Without its version: one lock is one set of documents, whichever version made them."""
_POOL = re.compile(r"pool/(?:[^/]+/)+(?P<prefix>[^/]+)/(?P<source>[^/]+)/[^/]+\.deb")
_MAJOR = re.compile(r"\d+")


class Kind(StrEnum):
    """What a component is."""

    IMAGE = "image"
    DEB = "deb"
    WHEEL = "wheel"
    NIX = "nix"
    FILE = "file"
    MODEL = "model"


@dataclass(frozen=True)
class Component:
    """A part of an image. `file` is the name of the archive it came in, or its path in the image; `source` is the Debian
    source package; `copyright` the path of the copyright file in the image; `layer` the blob that has it. Of a package of a
    base image, neither archive nor layer are known. A model is beside the image: `version` and `sha256` are those of its artifact,
    `file` is its source."""

    kind: Kind
    name: str
    version: str
    purl: str
    file: str
    sha256: str
    layer: Digest | None
    licence: Licence | None = None
    source: str = ""
    copyright: str = ""

    @property
    def id(self) -> str:
        """A name that is unique in its image, of letters, digits, dots and hyphens."""
        own = (
            Digest.of(self.file.encode()).hex
            if self.kind is Kind.FILE
            else self.sha256 or Digest.of(self.purl.encode()).hex
        )
        return f"{self.kind.value}-{re.sub(r'[^A-Za-z0-9.]+', '-', self.name).strip('-')}-{own[:12]}"


@dataclass(frozen=True)
class Inventory:
    """All of one image: `digest` is that of its manifest, `created` the lock's time, `debian` the number of the Debian
    release, or the name of its suite, or empty. On top of an image it is that of the distribution called `system`."""

    name: str
    platform: Platform
    digest: Digest
    created: str
    debian: str
    components: tuple[Component, ...]
    system: str = "debian"

    @property
    def purl(self) -> str:
        """Without a repository: the same image is in any number of them."""
        return f"pkg:oci/{quote(self.name.lower(), safe='')}@{self.digest}?arch={self.platform.architecture}"


def identified(document: Mapping[str, object], key: str) -> bytes:
    """The canonical bytes of a document about an image, with `key` set to a UUID that is its own: other content, other UUID."""
    content = Digest.of(spec.encode(document))
    return spec.encode({**document, key: uuid.uuid5(uuid.NAMESPACE_URL, f"{TOOL}:{content}").urn})


def of(lock: Lock, image: Assembled, licences: Mapping[str, Licence]) -> tuple[Inventory, ...]:
    """The inventories of all platforms, in the lock's order; `licences` are those of wheels by sha256."""
    manifests = image.documents.manifests[: len(image.images)]
    return tuple(
        Inventory(
            lock.name,
            locked.platform,
            manifest.digest,
            lock.created,
            release(locked),
            tuple(_components(lock, number, image, licences)),
            locked.image.distribution.partition("-")[0] if locked.image else "debian",
        )
        for number, (locked, manifest) in enumerate(zip(lock.platforms, manifests, strict=True))
    )


def release(locked: LockedPlatform) -> str:
    """The number of the Debian release, which is what base-files' version starts with; else the suite's name."""
    if locked.image:
        return locked.image.distribution.partition("-")[2]
    if not locked.debian:
        return ""
    versions = (deb.version for deb in locked.debian.packages if deb.name == "base-files")
    match = _MAJOR.match(next(versions, ""))
    return match[0] if match else locked.debian.suite


def deb_purl(deb: LockedDeb, debian: str) -> str:
    """The package URL of a Debian package, with the qualifiers by which scanners find its advisories."""
    qualifiers = {"arch": deb.architecture, "distro": f"debian-{debian}" if debian else "", "upstream": source(deb)}
    if qualifiers["upstream"] == deb.name:
        del qualifiers["upstream"]
    text = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(qualifiers.items()) if value)
    return f"pkg:deb/debian/{quote(deb.name, safe='')}@{quote(deb.version, safe=':')}?{text}"


def image_purl(image: LockedImage) -> str:
    """The package URL of a base image, without a registry."""
    return f"pkg:oci/{quote(image.name.lower(), safe='')}@{image.manifest}"


def _base(image: LockedImage) -> Iterator[Component]:
    """A base image, and the packages that its own records tell of."""
    name = image.source
    yield Component(Kind.IMAGE, name, image.manifest, image_purl(image), name, image.manifest[7:], None)
    system = image.distribution.partition("-")[0]
    sources = dict(image.sources)
    for package, version in image.packages if system else ():
        source = sources.get(package, "")
        told = {"distro": image.distribution, "upstream": source}
        qualifiers = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(told.items()) if value)
        purl = f"pkg:deb/{system}/{quote(package, safe='')}@{quote(version, safe=':')}?{qualifiers}"
        yield Component(Kind.DEB, package, version, purl, "", "", None, source=source)


def wheel_purl(wheel: LockedWheel) -> str:
    """The package URL of a wheel; its name is normalised already."""
    return f"pkg:pypi/{quote(wheel.name, safe='')}@{quote(wheel.version, safe=':')}"


def source(deb: LockedDeb) -> str:
    """The name of the source package, from the package's place in the archive's pool; empty elsewhere."""
    match = _POOL.fullmatch(deb.file.path)
    return match["source"] if match and match["source"].startswith(match["prefix"]) else ""


def _components(lock: Lock, number: int, image: Assembled, licences: Mapping[str, Licence]) -> Iterator[Component]:
    debian = release(lock.platforms[number])
    if below := lock.platforms[number].image:
        yield from _base(below)
    layers = zip(plan(lock).platforms[number].layers, image.images[number].layers, strict=True)
    for planned, built in layers:
        blob = built.blob.digest
        match planned:
            case SystemLayer():
                yield from (_deb(deb, debian, blob) for deb in planned.packages)
            case WheelLayer():
                yield from (_wheel(wheel, blob, licences.get(wheel.file.sha256)) for wheel in planned.wheels)
            case NixLayer():
                yield from (_nix(path, blob) for path in planned.paths)
            case LinksLayer():
                pass  # links to what the wheels bring
            case FilesLayer():
                local: list[LockedLocal | LockedTemplate] = [*planned.files, *planned.templates]
                files = sorted(local, key=lambda item: item.to)
                yield from (_file(file, file.sha256, blob) for file in files if file.sha256)
    yield from map(_model, lock.models)


def _model(model: LockedModel) -> Component:
    digest = model.manifest
    purl = f"pkg:oci/{quote(f'model-{model.name}', safe='')}@{digest}"
    several = len(model.licenses) > 1
    said = " AND ".join(f"({each})" if several and " " in each else each for each in model.licenses)
    return Component(
        Kind.MODEL, model.name, digest, purl, model.source, Digest.parse(digest).hex, None, decide(Told(said))
    )


def _deb(deb: LockedDeb, debian: str, layer: Digest) -> Component:
    return Component(
        Kind.DEB,
        deb.name,
        deb.version,
        deb_purl(deb, debian),
        deb.file.path.rpartition("/")[2],
        deb.file.sha256,
        layer,
        source=source(deb),
        copyright=f"/usr/share/doc/{deb.name}/copyright",
    )


def _wheel(wheel: LockedWheel, layer: Digest, licence: Licence | None) -> Component:
    purl = wheel_purl(wheel)
    return Component(Kind.WHEEL, wheel.name, wheel.version, purl, wheel.file.path, wheel.file.sha256, layer, licence)


def nix_purl(path: LockedNixPath) -> str:
    """The package URL of a path of a Nix store; one without a version is a part, such as a source or a script."""
    name, version = named(path.name)
    at = f"@{quote(version, safe='')}" if version else ""
    return f"pkg:nix/{quote(name, safe='')}{at}?outputhash={path.name[:32]}"


def _nix(path: LockedNixPath, layer: Digest) -> Component:
    name, version = named(path.name)
    return Component(Kind.NIX, name, version or path.name[:32], nix_purl(path), path.name, path.sha256, layer)


def _file(file: LockedLocal | LockedTemplate, sha256: str, layer: Digest) -> Component:
    return Component(Kind.FILE, file.to, "", "", file.to, sha256, layer)
