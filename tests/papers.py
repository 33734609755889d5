"""Locks and images as values, for tests of what is said about them: no layer of theirs exists."""

from __future__ import annotations

from collections.abc import Sequence

from builder.image import Assembled, BuiltLayer, Image
from builder.lock import (
    Lock,
    LockedDeb,
    LockedDebian,
    LockedFile,
    LockedInclude,
    LockedLocal,
    LockedPlatform,
    LockedPython,
    LockedRelease,
    LockedTemplate,
    LockedWheel,
)
from builder.oci import config, spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform
from builder.plan import plan
from builder.soci import index, ztoc

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
CREATED = "2026-01-31T12:00:00Z"


def sha(text: str) -> str:
    return Digest.of(text.encode()).hex


def deb(name: str, version: str, architecture: str = "amd64", source: str = "") -> LockedDeb:
    source = source or name
    prefix = source[:4] if source.startswith("lib") else source[0]
    path = f"pool/main/{prefix}/{source}/{name}_{version.partition(':')[2] or version}_{architecture}.deb"
    return LockedDeb(name, version, architecture, LockedFile("debian", path, sha(path), 1000))


def wheel(name: str, version: str) -> LockedWheel:
    path = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return LockedWheel(name, version, LockedFile("pypi", path, sha(path), 2000))


DEBS = (
    deb("base-files", "12.4+deb12u15"),
    deb("libc6", "2.36-9+deb12u14", source="glibc"),
    deb("libstdc++6", "12.2.0-14+deb12u1", source="gcc-12"),
    deb("passwd", "1:4.13+dfsg1-1+b1", source="shadow"),
    deb("tzdata", "2026b-0+deb12u1", "all"),
)
WHEELS = (wheel("numpy", "2.4.6"), wheel("torch", "2.15.0+cu130"), wheel("typing-extensions", "4.16.0"))


def lock(
    debs: Sequence[LockedDeb] = DEBS,
    wheels: Sequence[LockedWheel] = WHEELS,
    platforms: Sequence[Platform] = (AMD64,),
    name: str = "demo",
) -> Lock:
    """A lock with a Debian and a Python of these packages, and files of the profile, some with odd names."""
    locked = [
        LockedPlatform(
            platform,
            LockedDebian(
                "bookworm", sha("request"), (LockedRelease("debian", "bookworm", sha("release")),), tuple(debs)
            ),
            LockedPython("3.11", "/usr/bin/python3.11", False, (), sha("requirements"), tuple(wheels)),
        )
        for platform in platforms
    ]
    files = (
        LockedLocal("/app/main.py", "app/main.py", "0644", sha("main"), 4),
        LockedLocal('/app/ö "x"\\.py', 'app/ö "x"\\.py', "0644", sha("main"), 4),
        LockedLocal("/app/link", "app/link", "0777", target="main.py"),
    )
    templates = (LockedTemplate("/app/x.json", "x.json.j2", "0644", sha("source"), sha("rendered"), 8),)
    includes = (LockedInclude("../base/python.yaml", sha("include")),)
    return Lock(name, f"sha256:{sha('profile')}", CREATED, tuple(locked), includes, files, templates)


def image(lock: Lock) -> Assembled:
    """The image of a lock, whose blobs are named by their layers' keys; the first layer of each platform is indexed."""
    made = plan(lock)
    images, plain = [], []
    for platform in made.platforms:
        layers = []
        for number, layer in enumerate(platform.layers):
            blob = Descriptor(spec.LAYER_GZIP, layer.key, 20 << 20)
            described = Descriptor(ztoc.MEDIA_TYPE, Digest.of(layer.key.hex.encode()), 1000) if not number else None
            layers.append(BuiltLayer(layer.name, blob, layer.key, 40 << 20, described, 5, layer.key, False))
        diff_ids = [layer.diff_id for layer in layers]
        data = config.image_config(platform.platform, lock.created, platform.config, diff_ids, [])
        images.append(Image(platform.platform, tuple(layers), data))
        indexed = tuple(index.Layer(layer.blob, layer.ztoc) for layer in layers)
        described = Descriptor(spec.CONFIG, Digest.of(data), len(data))
        plain.append(index.PlainImage(platform.platform, described, indexed, 4 << 20))
    return Assembled(lock.name, tuple(images), index.convert(plain))
