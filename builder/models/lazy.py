"""A published model of which only what is used is fetched: files, tensors, parts of tensors; each byte checked, and kept.

    model = open_model("registry.example/models/bert@sha256:…")
    model.tensor("embeddings.word_embeddings.weight")[:1000]    # a numpy array; 1000 rows were fetched
    model.path("tokenizer.json")                                # a file on this disk
    model.prefetch("encoder.layer.0.*")                         # on its way, in the background

What was fetched lies in the cache, where other processes, later ones and `build model pull` find it.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from builder.errors import UsageError
from builder.forks import renew_in_forks
from builder.models.fetching import Fetcher
from builder.models.formats import read_header
from builder.models.lazyfile import LazyFile
from builder.models.pull import Published, Pulling
from builder.models.slices import Index
from builder.models.tensors import LazyTensor
from builder.models.values import Header, ModelFile, Tensor
from builder.oci.digest import Digest
from builder.parallel import Stop
from builder.progress import Progress, Silent
from builder.store import Store

if TYPE_CHECKING:
    import torch


class Model:
    """A published model, by its parts; shared by threads, good in forked processes. Close it, or use it in a `with` block."""

    def __init__(self, published: Published, store: Store, progress: Progress | None = None) -> None:
        self.published = published
        self._stop = Stop()
        self._pulling = Pulling(store, progress or Silent(), stop=self._stop)
        self._store = store
        self._guard = threading.Lock()
        self._files: dict[str, LazyFile] = {}
        renew_in_forks(self)

    def renew(self) -> None:
        """Begins anew in a forked process: with what is in the cache, and connections and locks of its own."""
        ended, self._stop = self._stop.is_set(), Stop()
        if ended:
            self._stop.set()
        self._pulling = replace(self._pulling, stop=self._stop)
        self._guard = threading.Lock()
        files, self._files = self._files, {}
        for file in files.values():
            file.renew()
        self.published.source.renew()

    def __reduce__(self) -> str:
        raise TypeError("an open model cannot be pickled: give its reference to the other process, and open it there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is on its way. Arrays that were given out stay good."""
        self._stop.set()
        with self._guard:
            for file in self._files.values():
                file.close()
            self._files.clear()

    @property
    def digest(self) -> Digest:
        """The digest of the manifest, by which the model is the same for ever."""
        return self.published.digest

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """All files, sorted by path; none of them was fetched."""
        return tuple(sorted(self.published.artifact.files))

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of all files by their names. A model without an index is fetched to read them."""
        return {name: tensor for name, (_, tensor) in self._tensors.items()}

    def names(self, pattern: str = "*") -> tuple[str, ...]:
        """The names of tensors that a pattern as in a shell matches, such as `model.layers.0.*`, in the order of their bytes."""
        return tuple(name for name in self._tensors if fnmatch.fnmatchcase(name, pattern))

    def tensor(self, name: str) -> LazyTensor:
        """A tensor; nothing is fetched before its elements are asked for. Raises `UsageError` if there is none."""
        if name not in self._tensors:
            import difflib  # takes long to import, and few need it

            near = difflib.get_close_matches(name, self._tensors, 1)
            raise UsageError(f"the model has no tensor {name!r}", hint=f"did you mean {near[0]}?" if near else None)
        file, tensor = self._tensors[name]
        return LazyTensor(tensor, lambda spans: self._file(file).view(tensor.start, tensor.end, spans))

    def path(self, path: str) -> Path:
        """A file, whole and checked, on this disk: it may be read, not written."""
        file = self._named(path)
        self._pulling.bring(self.published, [file])
        return self._store.path(Digest(file.sha256))

    def read(self, path: str) -> bytes:
        """The bytes of a file."""
        return self.path(path).read_bytes()

    def folder(self, folder: Path | str, *subset: str) -> Path:
        """A folder with the model's files, or those that a pattern matches, as `build model pull` makes it."""
        pulling = Pulling(self._store, self._pulling.progress, subset=subset, stop=self._stop)
        return pulling.pull(self.published, Path(folder)).folder

    def prefetch(self, *patterns: str, part: Callable[[Tensor], Index] | None = None) -> Prefetch:
        """Fetches the tensors whose names a pattern matches, in the background, in the order of the patterns; many at once.

        `part` tells what of each is wanted, such as `lambda tensor: slice(tensor.shape[0] // 2)`.
        """
        names = dict.fromkeys(name for pattern in patterns or ("*",) for name in self.names(pattern))
        return Prefetch(lambda stop: self._fetch(names, stop, part), Stop(self._stop))

    def state_dict(self, pattern: str = "*") -> dict[str, torch.Tensor]:
        """The tensors whose names a pattern matches, for torch."""
        names = self.names(pattern)
        self._fetch(names, self._stop)
        return {name: self.tensor(name).torch() for name in names}

    @cached_property
    def _tensors(self) -> dict[str, tuple[str, Tensor]]:
        found: dict[str, tuple[str, Tensor]] = {}
        for path, header in self._headers():
            for tensor in header.tensors if header else ():
                found[tensor.name] = (path, tensor)
        return found

    def _headers(self) -> Iterable[tuple[str, Header | None]]:
        if self.published.index is not None:
            return [(each.file.path, each.header) for each in self.published.index.files]
        return [(file.path, read_header(self.path(file.path), file.path)) for file in self.files]

    def _named(self, path: str) -> ModelFile:
        for file in self.files:
            if file.path == path:
                return file
        import difflib

        near = difflib.get_close_matches(path, [file.path for file in self.files], 1)
        raise UsageError(f"the model has no file {path!r}", hint=f"did you mean {near[0]}?" if near else None)

    def _file(self, path: str) -> LazyFile:
        with self._guard:
            if self._stop.is_set():
                raise UsageError("the model is closed", hint="read what is needed before it is, or open it again")
            if path not in self._files:
                file = self._named(path)
                (chunked,) = self.published.chunked([file])
                self._files[path] = LazyFile(self._store, chunked, self._fetcher, lambda: self.path(path))
            return self._files[path]

    def _fetcher(self, stop: Stop | None = None) -> Fetcher:
        return Fetcher(self.published.source.source, stop or self._stop)

    def _fetch(self, names: Iterable[str], stop: Stop, part: Callable[[Tensor], Index] | None = None) -> None:
        """Tensors, or parts of them, side by side; those of one file after those of the other."""
        wanted: dict[str, list[tuple[int, int]]] = {}
        for name in names:
            path, tensor = self._tensors[name]
            spans = [(0, tensor.end - tensor.start)] if part is None else self.tensor(name).spans(part(tensor))
            wanted.setdefault(path, []).extend((tensor.start + start, tensor.start + end) for start, end in spans)
        for path, spans in wanted.items():
            stop.check()
            self._file(path).ensure(spans, stop)


class Prefetch:
    """Work in the background; a daemon thread does it."""

    def __init__(self, work: Callable[[Stop], None], stop: Stop) -> None:
        self._stop = stop
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end, at most `timeout` seconds; whether it has come. Raises what went wrong."""
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return self.done

    def cancel(self) -> None:
        """Ends it before its end."""
        self._stop.set()

    def _run(self, work: Callable[[Stop], None]) -> None:
        from builder.parallel import StoppedError

        try:
            work(self._stop)
        except StoppedError:
            pass
        except Exception as error:
            self._error = error
