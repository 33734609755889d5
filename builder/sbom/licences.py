"""The licences of wheels, as their own metadata tells them.

The table of what is told lies in the store, one record a wheel, so that the wheels themselves are read once only.
Debian packages bring a copyright file into the image, which documents name instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from builder.errors import HostileInputError
from builder.layers.content import read
from builder.lock import Lock, LockedFile, LockedWheel
from builder.sources.archive import read_members
from builder.store import Store

_MAX_METADATA = 16 << 20
_MAX_TEXT = 64 << 10
_THREADS = 4
RECORD = "licence"
"""The kind of the records of what wheels tell: `expression`, `text` and a list of `classifiers`, by the wheel's sha256."""
_CLASSIFIER = "License :: "
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")

# Names with one meaning. "BSD License" and "Apache Software License" have several, so they stay names.
_KNOWN = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd-3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "the mit license": "MIT",
    "the mit license (mit)": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl 2.0": "MPL-2.0",
    "the unlicense (unlicense)": "Unlicense",
    "zope public license": "ZPL-2.1",
}


@dataclass(frozen=True)
class Licence:
    """`expression` is in SPDX's language (https://spdx.dev), or None where the metadata has only words: `text`."""

    expression: str | None
    text: str = ""


@dataclass(frozen=True)
class Told:
    """What the metadata of a wheel says: its fields License-Expression and License, and its classifiers of licences."""

    expression: str = ""
    text: str = ""
    classifiers: tuple[str, ...] = ()


def of(lock: Lock, store: Store, ensure: Callable[[Iterable[LockedFile]], None]) -> Mapping[str, Licence]:
    """The licences of the lock's wheels by their sha256; a wheel that tells none is left out.

    What depends on the lock only must not depend on what the store happens to have: `ensure` is asked to bring those
    wheels that were never read and are not there. Raises what it raises, `HostileInputError` and `StoreError`.
    """
    wheels = {wheel.file.sha256: wheel for platform in lock.platforms for wheel in platform.wheels}
    told = {sha256: found for sha256 in wheels if (found := _known(sha256, store))}
    unread = [wheel for sha256, wheel in wheels.items() if sha256 not in told]
    ensure([wheel.file for wheel in unread if not store.has(wheel.file.digest, wheel.file.size)])
    with ThreadPoolExecutor(_THREADS) as pool:
        read_now = pool.map(lambda wheel: remember(wheel, store), unread)
        told |= {wheel.file.sha256: found for wheel, found in zip(unread, read_now, strict=True)}
    return {sha256: licence for sha256 in wheels if (licence := decide(told[sha256]))}


def decide(told: Told) -> Licence | None:
    """The licence that the metadata tells: an expression if there is any that can only mean one thing, else the words."""
    classifier = told.classifiers[0].rpartition(" :: ")[2] if len(told.classifiers) == 1 else ""
    for text in (told.expression, told.text, classifier):
        if expression := _expression(text):
            return Licence(expression)
    words = told.expression or told.text or "; ".join(item.removeprefix(_CLASSIFIER) for item in told.classifiers)
    return Licence(None, words) if words else None


def parse(metadata: bytes) -> Told:
    """Reads the METADATA of a wheel (core metadata specification); what cannot be read counts as not said."""
    from packaging.metadata import parse_email  # it takes long to import, and wheels are read once only

    raw, _ = parse_email(metadata)
    classifiers = sorted({item for item in raw.get("classifiers", ()) if item.startswith(_CLASSIFIER)})
    return Told(_clean(raw.get("license_expression", "")), _clean(raw.get("license", "")), tuple(classifiers))


def _expression(text: str) -> str | None:
    text = " ".join(text.split())
    try:
        return canonicalize_license_expression(_KNOWN.get(text.lower(), text)) if text else None
    except InvalidLicenseExpression:
        return None


def _clean(text: str) -> str:
    """Text that may stand in a document and on a terminal; "UNKNOWN" is what old tools write for nothing."""
    text = "".join(character for character in text[:_MAX_TEXT] if character == "\n" or character.isprintable()).strip()
    return "" if text.upper() in ("UNKNOWN", "NONE", "N/A") else text


def _known(sha256: str, store: Store) -> Told | None:
    record = store.record(RECORD, sha256)
    match record:
        case {"expression": str(expression), "text": str(text), "classifiers": [*classifiers]}:
            return Told(expression, text, tuple(str(item) for item in classifiers))
    return None


def remember(wheel: LockedWheel, store: Store) -> Told:
    """Reads what a wheel tells, which is in the store, and notes it there. Raises `HostileInputError` and `StoreError`."""
    path, archive = store.path(wheel.file.digest), wheel.file.path
    with path.open("rb") as file:
        members = [member for member in read_members(file, archive) if _METADATA.fullmatch(member.name)]
    if len(members) != 1:
        raise HostileInputError(f"{archive}: a wheel has one METADATA, this one has {len(members)}")
    told = parse(read(members[0].content(path, archive), _MAX_METADATA))
    record = {"expression": told.expression, "text": told.text, "classifiers": list(told.classifiers)}
    store.put_record(RECORD, wheel.file.sha256, record)
    return told
