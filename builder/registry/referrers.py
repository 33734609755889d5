"""Who refers to a manifest: the referrers API, and the tag that stands for it where a registry has none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from builder.client import NotFoundError, TransientError, joined
from builder.oci import spec
from builder.oci.content import MAX_MANIFEST
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.registry.session import RegistryError, Session

_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?', re.IGNORECASE)
_MAX_PAGES = 1000
_RACES = 5


def fallback_tag(digest: Digest) -> str:
    """The tag of the index that lists the referrers of a manifest (distribution-spec, referrers tag schema)."""
    return f"sha256-{digest.hex}"


def next_page(link: str, url: str) -> str | None:
    """The address of the next page that a `Link` header names."""
    match = _NEXT.search(link)
    return joined(url, match[1]) if match else None


def from_api(session: Session, digest: Digest) -> tuple[Descriptor, ...] | None:
    """The referrers that the registry lists; None if it has no such API."""
    url: str | None = session.url(f"referrers/{digest}")
    found: list[Descriptor] = []
    for _ in range(_MAX_PAGES):
        if url is None:
            return tuple(found)
        try:
            page, url = session.retrying(lambda url=url: _page(session, url))  # type: ignore[misc]
        except NotFoundError:
            return None
        except RegistryError as error:
            if error.status in (400, 405, 415, 501) and not found:
                return None
            raise
        if page is None:
            return None
        found += page
    raise RegistryError(f"{session.reference.name}: the list of referrers of {digest} does not end")


def _page(session: Session, url: str) -> tuple[list[Descriptor] | None, str | None]:
    with session.send("GET", url, {"accept": spec.INDEX}) as answer:
        if answer.headers.get("content-type", "").partition(";")[0].strip() != spec.INDEX:
            return None, None
        link = answer.headers.get("link", "")
        document = answer.body(MAX_MANIFEST)
        return list(listed(document, session.reference.name)), next_page(link, answer.url) if link else None


def listed(data: bytes, name: str) -> tuple[Descriptor, ...]:
    """The descriptors of an index. Raises `TransientError` if the answer is none."""
    try:
        return tuple(Descriptor.parse(entry) for entry in json.loads(data)["manifests"] or ())
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError(f"{name}: its list of referrers cannot be read ({error})") from error


def subject_of(document: Mapping[str, Any]) -> Digest | None:
    """The digest of the manifest that this one refers to."""
    with suppress(ValueError, KeyError, TypeError):
        return Digest.parse(document["subject"]["digest"])
    return None


def as_referrer(descriptor: Descriptor, document: Mapping[str, Any]) -> Descriptor:
    """A manifest as lists of referrers name it: with its artifact type and annotations."""
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    annotations = document.get("annotations")
    return Descriptor(
        descriptor.media_type,
        descriptor.digest,
        descriptor.size,
        annotations if isinstance(annotations, dict) else {},
        None,
        kind if isinstance(kind, str) else None,
    )


def add_to_tag(
    subject: Digest, referrer: Descriptor, read: Callable[[str], bytes | None], write: Callable[[str, bytes], None]
) -> None:
    """Adds a referrer to the index that the fallback tag names, and looks whether another writer took it away again.

    `read` gives the index of a tag, or None; `write` puts one.
    """
    tag = fallback_tag(subject)
    for _ in range(_RACES):
        data = read(tag)
        entries: list[Any] = json.loads(data).get("manifests") or [] if data else []
        if any(entry.get("digest") == str(referrer.digest) for entry in entries):
            return
        write(
            tag,
            spec.encode({"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": [*entries, referrer.document()]}),
        )
    raise RegistryError(
        f"the referrers of {subject}: others change the list at the same time", hint="run the same command again"
    )
