"""Makes .debs and small signed Debian archives, and serves them on the loopback."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from judges import require

from builder.lock import LockedDeb, LockedFile

COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".xz": lambda data: lzma.compress(data),
}


@dataclass(frozen=True)
class Item:
    """A member of a tar; `name` and `link` are written as they are."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    link: str = ""
    uid: int = 0
    gid: int = 0


def folder(name: str, mode: int = 0o755) -> Item:
    return Item(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Item:
    return Item(name, type=tarfile.SYMTYPE, mode=0o777, link=target)


def hardlink(name: str, target: str) -> Item:
    return Item(name, type=tarfile.LNKTYPE, link=target)


def tar(items: Sequence[Item], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type, info.mode, info.linkname, info.size = item.type, item.mode, item.link, len(item.data)
            info.uid, info.gid = item.uid, item.gid
            archive.addfile(info, io.BytesIO(item.data))
    return file.getvalue()


def ar(members: Sequence[tuple[str, bytes]]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members:
        parts += [b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (name.encode(), 0, 0, 0, 0o100644, len(data)), data]
        parts += [b"\n"] * (len(data) % 2)
    return b"".join(parts)


def stanza(name: str, version: str = "1.0", architecture: str = "amd64", **fields: str) -> str:
    """A control stanza; `pre_depends="x"` is the field `Pre-Depends: x`."""
    lines = [f"Package: {name}", f"Version: {version}", f"Architecture: {architecture}"]
    lines += [f"{key.replace('_', '-').title()}: {value}" for key, value in fields.items()]
    return "\n".join([*lines, "Maintainer: Nobody <nobody@example.invalid>", "Description: made by a test"]) + "\n"


def deb(
    items: Sequence[Item] = (),
    control: str | None = None,
    *,
    control_suffix: str = ".xz",
    data_suffix: str = ".xz",
    md5sums: str = "",
    control_items: Sequence[Item] = (),
) -> bytes:
    """A .deb of these members of data.tar."""
    text = stanza("sample") if control is None else control
    controls = [folder("./"), Item("./control", text.encode()), *control_items]
    if md5sums:
        controls.append(Item("./md5sums", md5sums.encode()))
    return ar(
        [
            ("debian-binary", b"2.0\n"),
            (f"control.tar{control_suffix}", COMPRESS[control_suffix](tar(controls))),
            (f"data.tar{data_suffix}", COMPRESS[data_suffix](tar([folder("./"), *items]))),
        ]
    )


@dataclass(frozen=True)
class Made:
    """A .deb on disk with what a lock says of it."""

    path: Path
    locked: LockedDeb


def made(directory: Path, items: Sequence[Item], name: str = "sample", version: str = "1.0", **fields: str) -> Made:
    """Writes a .deb of these files."""
    architecture = fields.pop("architecture", "amd64")
    md5sums = fields.pop("md5sums", "")
    data = deb(items, stanza(name, version, architecture, **fields), md5sums=md5sums)
    path = directory / f"{name}_{version}_{architecture}.deb"
    path.write_bytes(data)
    file = LockedFile("debian", f"pool/{path.name}", hashlib.sha256(data).hexdigest(), len(data))
    return Made(path, LockedDeb(name, version, architecture, file))


class Signer:
    """Keys and signatures by GnuPG in a home of its own, at a time of our choice."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def gpg(self, *arguments: str, at: str = "20240101T000000") -> bytes:
        argv = [str(require("gpg")), "--homedir", str(self.home), "--batch", "--quiet", "--yes", "--passphrase", ""]
        argv += ["--pinentry-mode", "loopback", "--faked-system-time", at, *arguments]
        return subprocess.run(argv, check=True, capture_output=True).stdout

    def key(self, name: str, *, expires: str = "never", at: str = "20240101T000000") -> Path:
        """Makes a key; returns a keyring that has it alone."""
        address = f"{name}@example.invalid"
        self.gpg("--quick-generate-key", address, "ed25519", "sign", expires, at=at)
        keyring = self.home / f"{name}.gpg"
        keyring.write_bytes(self.gpg("--export", address, at=at))
        return keyring

    def sign(self, text: bytes, *names: str, expires: str = "0", at: str = "20240102T000000") -> bytes:
        """The text, clear-signed with the keys of these names."""
        source = self.home / "message"
        source.write_bytes(text)
        users = [word for name in names for word in ("--local-user", f"{name}@example.invalid")]
        form = ["--clearsign", "--digest-algo", "SHA256", "--default-sig-expire", expires, "--output", "-"]
        return self.gpg(*users, *form, str(source), at=at)

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)


@dataclass
class Suite:
    """A suite to be written: stanzas of packages, and what its InRelease says."""

    name: str
    stanzas: Sequence[str] = ()
    fields: dict[str, str] = field(default_factory=dict)
    suffixes: Sequence[str] = ("", ".xz")
    architecture: str = "amd64"

    def packages(self) -> bytes:
        return "\n".join(self.stanzas).encode()

    def release(self) -> str:
        fields = {
            "Origin": "Debian",
            "Label": "Debian",
            "Codename": self.name,
            "Date": "Mon, 01 Jan 2024 00:00:00 UTC",
            "Acquire-By-Hash": "yes",
            "No-Support-for-Architecture-all": "Packages",
            "Architectures": "all amd64",
            "Components": "main",
            **self.fields,
        }
        lines = [f"{key}: {value}" for key, value in fields.items() if value]
        lines.append("SHA256:")
        for suffix in self.suffixes:
            data = COMPRESS[suffix](self.packages())
            name = f"main/binary-{self.architecture}/Packages{suffix}"
            lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}")
        return "\n".join(lines) + "\n"

    def write(self, root: Path, signed: bytes) -> None:
        """Writes the suite below the archive's root, with what stands in InRelease."""
        directory = root / "dists" / self.name
        binary = directory / "main" / f"binary-{self.architecture}"
        (binary / "by-hash/SHA256").mkdir(parents=True)
        (directory / "InRelease").write_bytes(signed)
        for suffix in self.suffixes:
            data = COMPRESS[suffix](self.packages())
            (binary / f"Packages{suffix}").write_bytes(data)
            (binary / "by-hash/SHA256" / hashlib.sha256(data).hexdigest()).write_bytes(data)


def listed(name: str, version: str = "1.0", architecture: str = "amd64", **fields: str) -> str:
    """A stanza of a Packages file."""
    digest = hashlib.sha256(f"{name} {version}".encode()).hexdigest()
    filename = f"pool/main/{name[0]}/{name}/{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    return stanza(name, version, architecture, **{"filename": filename, "size": "1234", "SHA256": digest, **fields})
