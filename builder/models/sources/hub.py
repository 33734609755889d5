"""Models of a hub that speaks Hugging Face's API: `hf://ORGANISATION/REPOSITORY@COMMIT`, or a branch or tag that is locked as one.

The library `huggingface_hub` lists what there is; the bytes come as all others do. The token goes to the hub, and nowhere else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from builder.client import ForbiddenError, ForbiddenThereError, NotFoundError, body, redact
from builder.errors import BuilderError, FetchError
from builder.lock import LockedFile, LockedModel, LockedModelFile
from builder.models.sources import Collected, Means, Wanted
from builder.models.sources.selection import select
from builder.models.sources.web import Asking
from builder.models.values import LocalModelFile
from builder.parallel import Stop

ORIGIN = "hf"
_FORM = re.compile(r"hf://([^/@]+/[^/@]+)@(.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_PLAIN = 64 << 20
"""Files that are larger than this and not in LFS: no hub takes such."""


@dataclass(frozen=True)
class _Hub:
    """Where the hub is, and who asks."""

    endpoint: str
    token: str | None = field(repr=False)

    @classmethod
    def of(cls, means: Means) -> _Hub:
        library = _library()
        endpoint = (means.origins.get(ORIGIN) or (means.environ.get("HF_ENDPOINT") or library.constants.ENDPOINT,))[0]
        token = means.environ.get("HF_TOKEN") or library.get_token()
        return cls(endpoint.rstrip("/"), token or None)

    def url(self, repository: str, commit: str, path: str) -> str:
        return f"{self.endpoint}/{repository}/resolve/{commit}/{quote(path)}"

    def asking(self, means: Means, repository: str) -> Asking:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return _Asking(means.client, self.endpoint, headers, f"{redact(self.endpoint)}/{repository}", bool(self.token))

    def urls(self, file: LockedFile) -> list[str]:
        """Where a locked file is: its path is REPOSITORY@COMMIT/PATH."""
        repository, _, rest = file.path.partition("@")
        commit, _, path = rest.partition("/")
        return [self.url(repository, commit, path)]


@dataclass(frozen=True)
class _Asking(Asking):
    """Says where access to a repository is asked for."""

    page: str
    known: bool

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """As the client does."""
        try:
            with super().open(url, headers) as response:
                yield response
        except ForbiddenThereError:
            raise
        except ForbiddenError as error:
            whom = "the user of HF_TOKEN" if self.known else "anybody without a token"
            raise FetchError(
                f"{error}: the repository is gated or private, and not for {whom}",
                hint=f"ask for access at {self.page}, and set HF_TOKEN to a token that may read it",
            ) from error


def collect(text: str, wanted: Wanted, means: Means) -> Collected:
    """The wanted files of a commit, each checked by what the hub says of it: sha256 or git's own digest."""
    repository, revision = parse(text)
    hub = _Hub.of(means)
    means.online(redact(hub.endpoint))
    commit, siblings = _listed(hub, repository, revision)
    paths = select(siblings, wanted, f"models: {text}")
    large = {path: file for path in paths if (file := _in_lfs(siblings[path], path))}
    locked = [
        LockedFile(ORIGIN, f"{repository}@{commit}/{path}", file.sha256, file.size) for path, file in large.items()
    ]
    means.fetcher(hub, hub.asking(means, repository)).ensure(locked)
    files = [large.get(path) or _plain(hub, repository, commit, path, siblings[path], means) for path in paths]
    return Collected(f"hf://{repository}@{commit}", tuple(map(means.stored, files)))


def bring(text: str, locked: LockedModel, files: Sequence[LockedModelFile], means: Means) -> tuple[LocalModelFile, ...]:
    """The files of the locked commit."""
    repository, commit = parse(locked.source)
    hub = _Hub.of(means)
    means.fetcher(hub, hub.asking(means, repository)).ensure(
        LockedFile(ORIGIN, f"{repository}@{commit}/{file.path}", file.sha256, file.size) for file in files
    )
    return tuple(map(means.stored, files))


def parse(text: str) -> tuple[str, str]:
    """Repository and revision of such an address."""
    match = _FORM.fullmatch(text)
    if not match:
        raise BuilderError(
            f"models: {text}: no revision of a repository", hint="write hf://ORGANISATION/REPOSITORY@COMMIT"
        )
    return match[1], match[2]


def _library() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import constants  # noqa: F401  # an attribute of the package from here on
    except ImportError as error:
        raise BuilderError(
            "models: hf:// needs the library huggingface_hub", hint="pip install 'layerwright[models]'"
        ) from error
    return huggingface_hub


def _listed(hub: _Hub, repository: str, revision: str) -> tuple[str, Mapping[str, Any]]:
    """The commit that a revision stands for, and its files."""
    library = _library()
    api = library.HfApi(endpoint=hub.endpoint, token=hub.token or False)
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=60)
    except Exception as error:  # the library's own errors, and those of the HTTP library that it uses today
        raise _explained(error, hub, repository, revision) from None
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit) or (_COMMIT.fullmatch(revision) and commit != revision):
        raise FetchError(
            f"{redact(hub.endpoint)}: {repository}@{revision}: the hub answers with the commit {commit[:80]!r}"
        )
    return commit, {str(item.rfilename): item for item in info.siblings or ()}


def _explained(error: Exception, hub: _Hub, repository: str, revision: str) -> FetchError:
    name = type(error).__name__
    where = f"{redact(hub.endpoint)}: {repository}@{revision}"
    if name in ("GatedRepoError", "RepositoryNotFoundError"):
        hint = "check the name; of a private or gated repository, set HF_TOKEN to a token that may read it"
        return NotFoundError(f"{where}: no such repository, or not for you", hint=hint)
    if name == "RevisionNotFoundError":
        return NotFoundError(f"{where}: the repository has no such revision", hint="name a commit, branch or tag of it")
    text = str(error).splitlines()[0][:200] if str(error) else name
    shown = text.replace(hub.token, "…") if hub.token else text
    return FetchError(
        f"{where}: the hub does not answer: {shown}", hint="run the same command again; HF_ENDPOINT names the hub"
    )


def _in_lfs(item: Any, path: str) -> LockedModelFile | None:
    """What is known of a large file; None for one that lies in git itself."""
    lfs = item.lfs
    if lfs is None:
        return None
    sha256, size = str(lfs.sha256), lfs.size
    if not _SHA256.fullmatch(sha256) or type(size) is not int or size < 0:
        raise FetchError(f"{path}: the hub gives no sha256 and size for it")
    return LockedModelFile(path, sha256, size)


def _plain(hub: _Hub, repository: str, commit: str, path: str, item: Any, means: Means) -> LockedModelFile:
    """A small file, whose git digest the hub says."""
    url, asking = hub.url(repository, commit, path), hub.asking(means, repository)

    def attempt() -> bytes:
        with asking.open(url) as response:
            return body(response, url, _MAX_PLAIN)

    data = means.client.retrying(attempt, Stop())
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if item.blob_id is not None and item.blob_id != git:
        raise FetchError(f"{repository}@{commit}: {path!r} has other bytes than the commit says")
    return LockedModelFile(path, means.store.put(data).hex, len(data))
