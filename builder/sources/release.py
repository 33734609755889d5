"""An InRelease: believed only as far as gpgv verifies it, and only for the suite and the time that it says."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from builder.errors import BuilderError
from builder.process import run
from builder.sources.control import fields

_BEGIN = b"-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = b"-----BEGIN PGP SIGNATURE-----"
_END = b"-----END PGP SIGNATURE-----"
_STATUS = re.compile(r"^\[GNUPG:\] (\S+) ?(.*)$", re.M)
_CHECKSUM = re.compile(r"\s*([0-9a-f]{64})\s+([0-9]{1,15})\s+(\S+)\s*")
_REFUSED = {
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key that signed it has expired",
    "REVKEYSIG": "the key that signed it was revoked",
    "NO_PUBKEY": "the key that signed it is not in the keyring",
    "ERRSIG": "the signature cannot be checked",
}


class ArchiveError(BuilderError):
    """A Debian archive says something that cannot be believed, or not what it should."""

    hint = "try again later or with another mirror; `build doctor` shows where Debian is looked for"


@dataclass(frozen=True)
class Release:
    """What a verified InRelease says: `sha256` is of the signed file, `files` gives sha256 and size of each index."""

    origin: str
    suite: str
    sha256: str
    fields: Mapping[str, str]
    files: Mapping[str, tuple[str, int]]

    @property
    def by_hash(self) -> bool:
        return self.fields.get("acquire-by-hash", "").lower() == "yes"


def read(inrelease: bytes, origin: str, suite: str, keyrings: Sequence[Path], now: datetime) -> Release:
    """The release that an InRelease holds: signed by the keyrings, Debian's, of this suite, and valid at `now`."""
    what = f"InRelease of {suite} ({origin})"
    text = verify(inrelease, keyrings, what)
    try:
        found = fields(text)
    except ValueError as error:
        raise ArchiveError(f"{what}: {error}") from error
    if found.get("origin") != "Debian":
        raise ArchiveError(f"{what}: its origin is {found.get('origin', 'not given')!r}, not Debian")
    if found.get("codename") != suite:
        raise ArchiveError(
            f"{what}: it is the release of {found.get('codename', 'an unnamed suite')!r}",
            hint="name the suite by its codename, as `bookworm`; if you did, choose another mirror",
        )
    _check_time(found.get("valid-until"), now, what)
    return Release(origin, suite, hashlib.sha256(inrelease).hexdigest(), found, _files(found.get("sha256", ""), what))


def verify(inrelease: bytes, keyrings: Sequence[Path], what: str) -> str:
    """The text of a clear-signed message, as gpgv gives it back: not a byte of what stands around it.

    At least one signature must be good. A signature that is bad refuses the message whatever the others say; one that
    cannot be checked, or whose key has expired, counts for nothing (Debian signs with the keys of two releases, and
    an older keyring knows one of them).
    """
    if not keyrings:
        raise ArchiveError(f"{what}: there is no keyring to check it", hint="install debian-archive-keyring")
    body = inrelease.strip()
    one = body.count(_BEGIN) == 1 and body.count(_SIGNATURE) == 1 and body.count(_END) == 1
    if not (one and body.startswith(_BEGIN) and body.endswith(_END)):
        raise ArchiveError(f"{what}: it is not one clear-signed message")
    with tempfile.TemporaryDirectory(prefix="layerwright-") as name:
        directory = Path(name)
        (directory / "InRelease").write_bytes(inrelease)
        argv = ["gpgv", "--homedir", name, "--status-fd", "1", "--weak-digest", "SHA1", "--output", f"{name}/text"]
        for number, keyring in enumerate(keyrings):
            (directory / f"{number}.gpg").write_bytes(_binary(keyring))
            argv += ["--keyring", f"{name}/{number}.gpg"]
        status = run([*argv, f"{name}/InRelease"], accept=(0, 1, 2), timeout=60, hint="install gpgv (Debian: `gpgv`)")
        _judge(status.decode(errors="replace"), what)
        try:
            return (directory / "text").read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{what}: gpgv gave no text for it") from error


def _judge(status: str, what: str) -> None:
    words = [word for word, _ in _STATUS.findall(status)]
    if "BADSIG" in words:
        raise ArchiveError(f"{what}: a signature is wrong, the file was changed after it was signed")
    if words.count("PLAINTEXT") != 1:
        raise ArchiveError(f"{what}: it is not one signed message")
    if "GOODSIG" not in words or "VALIDSIG" not in words:
        reasons = dict.fromkeys(text for word, text in _REFUSED.items() if word in words and word != "ERRSIG")
        raise ArchiveError(f"{what}: no good signature: {', '.join(reasons) or _REFUSED['ERRSIG']}")


def _binary(keyring: Path) -> bytes:
    """A keyring as gpgv reads it: an ASCII-armoured one is unpacked (RFC 4880, 6.2)."""
    try:
        data = keyring.read_bytes()
    except OSError as error:
        raise ArchiveError(
            f"keyring {keyring}: {error.strerror}", hint="install debian-archive-keyring, or correct Signed-By"
        ) from error
    if not data.lstrip().startswith(b"-----BEGIN"):
        return data
    blocks = re.findall(
        rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n:]+:[^\r\n]*\r?\n)*\s*(.*?)(?:\r?\n=\S{4})?\s*-----END",
        data,
        re.S,
    )
    try:
        return b"".join(base64.b64decode(b"".join(block.split()), validate=True) for block in blocks)
    except binascii.Error as error:
        raise ArchiveError(f"keyring {keyring}: not an OpenPGP key block") from error


def _check_time(valid_until: str | None, now: datetime, what: str) -> None:
    if valid_until is None:
        return
    try:
        until = parsedate_to_datetime(valid_until)
    except ValueError as error:
        raise ArchiveError(f"{what}: Valid-Until is no date: {valid_until!r}") from error
    if until.replace(tzinfo=until.tzinfo or UTC) < now:
        raise ArchiveError(
            f"{what}: it was valid until {valid_until}: the mirror is out of date, or replays an old state",
            hint="choose another mirror, and check this machine's clock",
        )


def _files(section: str, what: str) -> dict[str, tuple[str, int]]:
    files = {}
    for line in section.splitlines():
        if not line.strip():
            continue
        match = _CHECKSUM.fullmatch(line)
        if not match:
            raise ArchiveError(f"{what}: not a line of its SHA256 section: {line.strip()!r}")
        files[match[3]] = (match[1], int(match[2]))
    return files
