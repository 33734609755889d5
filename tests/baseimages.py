"""Base images for tests, made by programs of others: small Debians of a few files, by umoci, skopeo and tar."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judges import require

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"", mode: int = 0o644, **more: object) -> Member:
    """A file, or what `type` says, of a layer."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), mode, 1_600_000_000
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Member:
    """A folder of a layer."""
    return file(name, b"", mode, type=tarfile.DIRTYPE, uid=uid, gid=gid)


def link(name: str, target: str) -> Member:
    """A symlink of a layer."""
    return file(name, mode=0o777, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Member:
    """A hard link of a layer."""
    return file(name, type=tarfile.LNKTYPE, linkname=target)


def tar(members: Sequence[Member], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A layer as GNU tar and most tools write it, its last record filled."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def python(version: str, prefix: str = "usr") -> list[Member]:
    """What is looked for of a Python `3.N.M`: a program that knows its version, and a standard library."""
    short = version.rpartition(".")[0]
    program = b"\x7fELF" + bytes(5000) + version.encode() + b"\0" + bytes(3000)
    return [
        folder(f"{prefix}/bin"),
        file(f"{prefix}/bin/python{short}", program, 0o755),
        folder(f"{prefix}/lib/python{short}"),
        file(f"{prefix}/lib/python{short}/os.py", b"# os\n"),
    ]


LIBC = b"\x7fELF" + bytes(900) + b"GNU C Library (Debian GLIBC 2.36-9+deb12u9) stable release version 2.36.\n\0"
OS_RELEASE = b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'


def debian(noise: bytes = b"") -> list[Member]:
    """The bottom layer: links of the merged /usr, folders with modes and owners of their own."""
    return [
        folder("./"),
        link("./bin", "usr/bin"),
        link("./lib", "usr/lib"),
        folder("./tmp", 0o1777),
        folder("./root", 0o700),
        folder("./home/app", 0o750, uid=1000, gid=1000),
        folder("./var/tmp", 0o1777),
        link("./var/run", "/run"),
        folder("./run"),
        folder("./opt"),
        folder("./usr/lib/x86_64-linux-gnu"),
        file("./usr/lib/x86_64-linux-gnu/libc.so.6", LIBC, 0o755),
        file("./usr/lib/os-release", OS_RELEASE),
        link("./etc/os-release", "../usr/lib/os-release"),
        file("./etc/debian_version", b"12.9\n"),
        file("./usr/share/noise", noise),
    ]


def layout(root: Path, layers: Sequence[Sequence[Member]], tag: str = "base", *config: str) -> Path:
    """An OCI layout that umoci makes of layers; `config` are further options of `umoci config`."""
    umoci = str(require("umoci"))
    if not root.exists():
        subprocess.run([umoci, "init", "--layout", str(root)], check=True, capture_output=True)
    subprocess.run([umoci, "new", "--image", f"{root}:{tag}"], check=True, capture_output=True)
    subprocess.run(
        [umoci, "config", "--image", f"{root}:{tag}", "--architecture=amd64", "--os=linux", *config],
        check=True,
        capture_output=True,
    )
    for number, members in enumerate(layers):
        path = root.parent / f"{root.name}-{tag}-{number}.tar"
        path.write_bytes(tar(members))
        subprocess.run(
            [umoci, "raw", "add-layer", "--image", f"{root}:{tag}", str(path)], check=True, capture_output=True
        )
        path.unlink()
    return root


def skopeo(*arguments: object) -> None:
    """Copies an image with skopeo."""
    argv = [str(require("skopeo")), "--insecure-policy", "copy", "-q", *map(str, arguments)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def manifest(root: Path, tag: str = "base") -> dict[str, Any]:
    """The manifest of an image of one platform in a layout."""
    index = json.loads((root / "index.json").read_bytes())
    entry = next(
        entry for entry in index["manifests"] if entry["annotations"]["org.opencontainers.image.ref.name"] == tag
    )
    document: dict[str, Any] = json.loads(blob(root, entry["digest"]).read_bytes())
    return document | {"digest": entry["digest"]}


def blob(root: Path, digest: str) -> Path:
    """Where a blob of a layout lies."""
    return root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def sha256(data: bytes) -> str:
    """The digest of bytes, as documents write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
