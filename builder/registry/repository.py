"""One repository of a registry: a source and a target of images (distribution-spec 1.1)."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from builder.client import Client, NotFoundError, TransientError, origin
from builder.oci import spec
from builder.oci.content import MAX_MANIFEST, Outcome
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop
from builder.registry import referrers as listing
from builder.registry import tags
from builder.registry.ahead import Ahead
from builder.registry.credentials import Credentials, Keychain
from builder.registry.download import download
from builder.registry.reference import Reference
from builder.registry.session import RegistryError, Session
from builder.registry.stream import WrongBytesError, once, ranged, stream
from builder.registry.upload import Upload, has

MANIFESTS = (
    spec.INDEX,
    spec.MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
"""The media types of what is kept as a manifest."""

_CONNECTIONS = 16
_THREADS = 16
_REMEMBERED = 64


class Repository:
    """The repository that `reference` names; shared by threads. Implements `Source` and `Target`.

    `mounts` tells which repositories of the same registry may have a blob, the likeliest first; `advance` is told of the bytes of
    blobs that go and come (less than zero where some have to be sent again); `stop` ends what runs. A repository that
    is only read asks for less: `writing` must be true before anything is put.
    """

    def __init__(
        self,
        reference: Reference,
        client: Client,
        keychain: Keychain,
        *,
        plain_http: bool = False,
        writing: bool = False,
        mounts: Callable[[Digest], Iterable[str]] = lambda _: (),
        advance: Callable[[int], None] = lambda _: None,
        stop: Stop | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.reference = reference
        self._session = Session(
            reference, client, keychain, plain_http=plain_http, credentials=credentials, writing=writing
        )
        self._mounts = mounts
        self._advance = advance
        self._stop = stop or Stop()
        self._connections = threading.BoundedSemaphore(_CONNECTIONS)
        self._guard = threading.Lock()
        self._listing = threading.Lock()
        self._remembered: dict[Digest, bytes] = {}
        self._ahead: dict[str, Ahead] = {}
        self.sending_since: float | None = None
        """When the first blob was begun whose digest was not known, by the monotonic clock."""
        self._prepared: set[object] = set()

    def __str__(self) -> str:
        return self.reference.name

    def resolve(self, reference: str | None) -> Descriptor:
        """What a tag or digest stands for now; None is what the repository's own reference names, or `latest`.

        Raises `NotFoundError` if there is no such thing, which names tags that are there.
        """
        wanted = reference or self.reference.wanted
        try:
            return self._resolve(wanted)
        except NotFoundError as error:
            told = None if ":" in wanted else tags.advice(self._session, wanted)
            raise NotFoundError(str(error), hint=told or error.hint) from error

    def find(self, tag: str) -> Descriptor | None:
        """What a tag stands for now; None if there is no such tag."""
        try:
            return self._resolve(tag)
        except NotFoundError:
            return None

    def manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest or index, checked."""
        if descriptor.size > MAX_MANIFEST:
            raise RegistryError(f"{self}: the manifest {descriptor.digest} has more than {MAX_MANIFEST} bytes")
        with self._guard:
            known = self._remembered.get(descriptor.digest)
        if known is None:
            known, _ = self._session.retrying(self._twice(lambda: self._get(str(descriptor.digest))), self._stop)
            self._remember(descriptor.digest, known)
        if len(known) != descriptor.size:
            raise WrongBytesError(
                f"{self}: the manifest {descriptor.digest} has {len(known)} bytes, {descriptor.size} are expected"
            )
        return known

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[BinaryIO]:
        """The bytes of a blob as a stream; parts of a big one are fetched ahead, in about 25 MiB of memory."""
        return stream(self._session, descriptor, self._advance)

    def ranges(self, descriptor: Descriptor, start: int, end: int, stop: Stop | None = None) -> Iterator[bytes]:
        """The bytes `start` up to `end` of a blob, in blocks; nothing checks them here, and `advance` is not told.

        Raises `NoRangesError`, before the first block, where the server sends all of a blob or nothing of it.
        """
        return ranged(self._session, descriptor, start, end, stop or self._stop)

    def once(self, descriptor: Descriptor, start: int, end: int) -> Generator[bytes, None, None]:
        """The same by one request, which is not tried again; a fork of this process may ask for it, by a connection of its own."""
        return once(self._session, descriptor, start, end)

    def prepare(self, count: int) -> None:
        """Opens connections to where blobs come from, as far as that is known, for many requests that come soon."""
        url = self._session.served or self._session.base
        with self._guard:
            known = origin(url) in self._prepared
            self._prepared.add(origin(url))
        if not known:
            self._session.client.prepare(url, count)

    def download(self, descriptor: Descriptor, path: Path) -> None:
        """Brings a blob to `path` in parallel ranges, going on with what an interrupted call left there, checked.

        Others must not write to `path` meanwhile; beside it lies a journal of the same name until all is there.
        """
        download(
            self._session,
            descriptor,
            path,
            connections=self._connections,
            threads=_THREADS,
            advance=self._advance,
            stop=self._stop,
        )

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """The manifests whose subject is `digest`, from the referrers API or else from the tag that replaces it."""
        found = listing.from_api(self._session, digest)
        if found is not None:
            return found
        data = self._tagged(listing.fallback_tag(digest))
        return () if data is None else listing.listed(data, str(self))

    def tags(self) -> tuple[str, ...]:
        """The names of all tags."""
        found: list[str] = []
        url: str | None = self._session.url("tags/list")
        while url is not None:
            page, url = self._session.retrying(lambda url=url: tags.page(self._session, url), self._stop)  # type: ignore[misc]
            found += page
        return tuple(found)

    def tags_like(self, tag: str, count: int) -> list[str]:
        """So many tags whose names are most like `tag`, the nearest first, of the first hundred; one request finds them."""
        return tags.nearest(tag, tags.some(self._session)[0], count)

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there; or a manifest, if the media type is one of `MANIFESTS`."""
        if descriptor.media_type in MANIFESTS:
            return has(self._session, "manifests", descriptor, _ACCEPT)
        return has(self._session, "blobs", descriptor)

    def tagged(self, tag: str) -> Digest | None:
        """What a tag stands for, by one small request; None if there is no such tag, or the registry does not say."""

        def attempt() -> Digest | None:
            try:
                with self._session.send("HEAD", self._session.url(f"manifests/{tag}"), _ACCEPT) as answer:
                    return Digest.parse(answer.headers.get("docker-content-digest", ""))
            except (NotFoundError, ValueError):
                return None

        return self._session.retrying(attempt, self._stop)

    def put_blob(
        self,
        descriptor: Descriptor,
        open: Callable[[], AbstractContextManager[BinaryIO]],
        path: Path | None = None,
    ) -> Outcome:
        """The blob is there afterwards: it was, it was mounted, or it was sent.

        Raises `DamagedBlobError` if the bytes given are not those of the digest.
        """
        mounts = self._mounts(descriptor.digest)
        ahead = self._taken_ahead(path, descriptor.size)
        return Upload(self._session, descriptor, open, path, mounts, self._advance, self._stop, ahead).run()

    def ahead(self, path: Path, size: int) -> Ahead:
        """The upload of a large file whose digest is not known yet. The caller lets it `run`, in a thread; `put_blob` of the same
        `path` goes on with it, and the caller drops it if that is not called."""
        ahead = Ahead(self._session, path, size)
        with self._guard:
            self._ahead[os.path.realpath(path)] = ahead
            self.sending_since = self.sending_since or ahead.since
        return ahead

    def _taken_ahead(self, path: Path | None, size: int) -> Ahead | None:
        with self._guard:
            found = self._ahead.pop(os.path.realpath(path), None) if path is not None and self._ahead else None
        return found if found is not None and found.size == size else None

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """The manifest or index is there afterwards; with `tag`, the tag stands for it.

        One that has a subject is listed by the registry, or else in the tag that replaces its referrers API.
        """
        if len(data) > MAX_MANIFEST or len(data) != descriptor.size or Digest.of(data) != descriptor.digest:
            raise RegistryError(f"{self}: the manifest {descriptor.digest} cannot be put: its size or digest is wrong")
        document = json.loads(data)
        subject = listing.subject_of(document)
        knows_subjects = self._put(descriptor, data, tag)
        if subject is not None and not knows_subjects:
            with self._listing:
                listing.add_to_tag(subject, listing.as_referrer(descriptor, document), self._tagged, self._put_index)

    def _put(self, descriptor: Descriptor, data: bytes, tag: str | None) -> bool:
        """Whether the registry says that it has noted the subject."""
        url = self._session.url(f"manifests/{tag or descriptor.digest}")
        headers = {"content-type": descriptor.media_type, "content-length": str(len(data))}

        def attempt() -> bool:
            try:
                with self._session.send("PUT", url, headers, data, accept=(200, 201, 202)) as answer:
                    told = answer.headers.get("docker-content-digest", str(descriptor.digest))
                    if told != str(descriptor.digest):
                        raise TransientError(f"{self}: it says that it stored the manifest as {told[:80]!r}")
                    return "oci-subject" in answer.headers
            except RegistryError as error:
                if "DIGEST_INVALID" in error.codes:  # it did not arrive as it was
                    raise TransientError(str(error)) from error
                raise

        return self._session.retrying(attempt, self._stop)

    def _put_index(self, tag: str, data: bytes) -> None:
        self._put(Descriptor(spec.INDEX, Digest.of(data), len(data)), data, tag)

    def _tagged(self, tag: str) -> bytes | None:
        try:
            data, _ = self._session.retrying(self._twice(lambda: self._get(tag)), self._stop)
        except NotFoundError:
            return None
        return data

    def _get(self, wanted: str) -> tuple[bytes, Descriptor]:
        """A manifest and its descriptor. Raises `WrongBytesError` if the digests of the answer do not agree."""
        with self._session.send("GET", self._session.url(f"manifests/{wanted}"), _ACCEPT) as answer:
            data = answer.body(MAX_MANIFEST)
            told = answer.headers.get("docker-content-digest", "")
            content_type = answer.headers.get("content-type", "").partition(";")[0].strip()
        digest = Digest.of(data)
        expected = wanted if wanted.startswith("sha256:") else told
        if expected and expected != str(digest):
            raise WrongBytesError(f"{self}: {wanted}: the bytes are not those of {expected[:80]}, but of {digest}")
        return data, Descriptor(_media_type(data, content_type, f"{self}: {wanted}"), digest, len(data))

    def _twice(self, attempt: Callable[[], tuple[bytes, Descriptor]]) -> Callable[[], tuple[bytes, Descriptor]]:
        """Bytes that are wrong once may have been damaged on the way; twice, they are wrong."""
        wrong = 0

        def wrapped() -> tuple[bytes, Descriptor]:
            nonlocal wrong
            try:
                return attempt()
            except WrongBytesError as error:
                wrong += 1
                if wrong > 1:
                    raise
                raise TransientError(str(error)) from error

        return wrapped

    def _resolve(self, wanted: str) -> Descriptor:
        data, descriptor = self._session.retrying(self._twice(lambda: self._get(wanted)), self._stop)
        self._remember(descriptor.digest, data)
        return descriptor

    def _remember(self, digest: Digest, data: bytes) -> None:
        with self._guard:
            while len(self._remembered) >= _REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[digest] = data


_ACCEPT = {"accept": ", ".join(MANIFESTS)}


def _media_type(data: bytes, content_type: str, name: str) -> str:
    """What the bytes say of themselves, which the digest covers; else what the registry says."""
    try:
        document: Any = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise WrongBytesError(f"{name}: the answer is no manifest") from error
    told = document.get("mediaType")
    if isinstance(told, str) and told:
        return told
    return content_type if re.fullmatch(r"[\w.+-]+/[\w.+-]+", content_type) else spec.MANIFEST
