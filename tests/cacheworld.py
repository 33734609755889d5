"""Layer caches for tests: keys, teams that share a cache, and entries that somebody else has written."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registryworld import repository
from world import Done, World, run

from builder.layercache.entry import SIGNATURE
from builder.layercache.keys import SecretKey
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.registry import Repository

PATH = "team/layers"
TAKEN = re.compile(r"(\d+) of (\d+) missing layers taken")


@dataclass
class Builder:
    """Somebody who builds: a store of their own, keys, and where the cache is."""

    world: World
    folder: Path
    at: str
    trust: tuple[SecretKey, ...] = ()
    secret: SecretKey | None = None
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Nothing but the cache: no origin answers, and no mirror has anything, unless `more` says so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        nowhere = self.folder / "nowhere.toml"
        nowhere.write_text('[origins]\ndebian = []\ndebian-security = []\npypi = "http://127.0.0.1:9/simple"\n')
        told = {"LAYERWRIGHT_CONFIG": str(nowhere), "LAYERWRIGHT_CACHE": f"oci://{self.at}/{PATH}"}
        if self.trust:
            told["LAYERWRIGHT_CACHE_TRUST"] = " ".join(str(key.public) for key in self.trust)
        if self.secret:
            path = self.folder / "secret.key"
            path.write_text(self.secret.text)
            told["LAYERWRIGHT_CACHE_SIGN"] = str(path)
        return self.world.environment(self.folder / "cache", **{**told, **self.more})

    def build(self, *arguments: object) -> Done:
        return run(arguments, self.folder, self.environment)

    def publish(self, profile: Path, *arguments: object) -> Any:
        """What `publish` into a layout says of it, as JSON."""
        done = self.build("publish", profile, f"oci:{self.folder / 'out'}", "--format", "json", *arguments)
        return done.json | {"notes": [line for line in done.err.splitlines() if line.startswith("cache ")]}


def with_inputs(world: World, folder: Path, at: str, **options: Any) -> Builder:
    """Somebody who has all inputs at hand."""
    places = {
        "LAYERWRIGHT_MIRRORS": str(world.root / "cache/layerwright"),
        "LAYERWRIGHT_CONFIG": str(world.config),
    }
    return Builder(world, folder, at, more=places, **options)


def packed(document: Any) -> dict[str, bool]:
    """The names of the layers, and whether they were packed now."""
    return {layer["name"]: layer["packed"] for layers in document["platforms"].values() for layer in layers}


@dataclass
class Entry:
    """An entry of a cache as it is stored, to be changed and put back."""

    repository: Repository
    tag: str
    manifest: dict[str, Any]
    record: dict[str, Any]

    @classmethod
    def all_at(cls, at: str, path: str = PATH) -> list[Entry]:
        found = []
        there = repository(at, path)
        for tag in sorted(there.tags()):
            manifest = json.loads(there.manifest(there.resolve(tag)))
            with there.blob(Descriptor.parse(manifest["config"])) as stream:
                found.append(cls(there, tag, manifest, json.loads(stream.read())))
        return found

    def blob(self, data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
        """Puts a blob, and describes it."""
        descriptor = Descriptor(media_type, Digest.of(data), len(data))
        self.repository.put_blob(descriptor, lambda: io.BytesIO(data))
        return dict(descriptor.document())

    def put(self, secret: SecretKey | None = None, record: bytes | None = None, tag: str | None = None) -> None:
        """Puts the entry back, with a signature of `secret` if one is given."""
        data = spec.encode(self.record) if record is None else record
        self.manifest["config"] = self.blob(data, self.manifest["config"]["mediaType"])
        if secret:
            self.manifest["annotations"][SIGNATURE] = secret.sign(b"layerwright layer cache 1\n" + data)
        self.put_manifest(spec.encode(self.manifest), tag)

    def put_manifest(self, data: bytes, tag: str | None = None) -> None:
        described = Descriptor(spec.MANIFEST, Digest.of(data), len(data))
        self.repository.put_manifest(described, data, tag or self.tag)
