"""What maintainer scripts would have made and a root needs: made here, the same for everybody, where no package has it.

* `/etc/passwd` and `/etc/group`: base-passwd's masters if it is there, else root and nobody; and in either case
  `nonroot` (65532), because programs that ask for their user's name fail for a number without one.
* `/etc/ssl/certs/ca-certificates.crt` if ca-certificates is there: all its certificates, sorted by path, and OpenSSL's
  default file and folder as links to it. Hashed links are not made: every TLS library of Debian reads the bundle.
* `/etc/ld.so.conf` and the folder that it includes. No cache: the paths of Debian are built into the loader.
* `/etc/nsswitch.conf`, so that `/etc/hosts` is asked before the name server.
* `/usr/bin/python3`, a link to the image's interpreter.
* The folders of a running system, and `/var/run` and `/var/lock`. `/tmp` is open to all, `/root` to root.

* Alternatives without which other packages do not run: the linear algebra that programs are linked with, `awk`, `which`,
  the compilers' names and MPI's. The best one that is there is linked, as update-alternatives would.

Not made: other alternatives (`pager`, `editor`, `java`: a profile can add a link of its own), users of daemons, hostname,
hosts and resolv.conf (the container runtime puts these), caches of fonts, icons, certificates of Java, or modules.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from builder.errors import BuilderError
from builder.layers.tar import Entry, Inline, Kind
from builder.layers.unpack import chunks

_PASSWD = "root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUP = "root:*:0:\nnogroup:*:65534:\n"
_NONROOT_USER = "nonroot:*:65532:65532:nonroot:/nonexistent:/usr/sbin/nologin\n"
_NONROOT_GROUP = "nonroot:*:65532:\n"
_MULTIARCH = re.compile(r"usr/lib/[a-z0-9_]+-linux-gnu[a-z0-9]*/")
_CERTIFICATES = "usr/share/ca-certificates/"
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
_NSSWITCH_MASTERS = ("usr/share/libc-bin/nsswitch.conf", "usr/share/base-files/nsswitch.conf")
_NSSWITCH = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"
_DIRS = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "run/lock": 0o1777,
    "srv": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/local": 0o755,
    "var": 0o755,
    "var/tmp": 0o1777,
}
_OPENBLAS = ("openblas-pthread", "openblas-openmp", "openblas-serial")
_LIBRARIES = {
    "libblas.so.3": (*_OPENBLAS, "blis-openmp", "blis-pthread", "blis-serial", "atlas", "blas"),
    "liblapack.so.3": (*_OPENBLAS, "atlas", "lapack"),
    "libopenblas.so.0": _OPENBLAS,
}
"""By the name that programs are linked with: folders of the multiarch library folder that may have it, best first."""
_PROGRAMS = {
    "awk": ("gawk", "mawk", "original-awk"),
    "c++": ("g++", "clang++"),
    "cc": ("gcc", "clang"),
    "mpiexec": ("mpiexec.openmpi", "mpiexec.mpich"),
    "mpirun": ("mpirun.openmpi", "mpirun.mpich"),
    "which": ("which.debianutils",),
}


def made(paths: Mapping[str, Entry], packages: Collection[str], executable: str | None) -> Iterator[Entry]:
    """The entries to add to those that packages have (by path). `packages` holds the names of what is there;
    `executable` is the interpreter's absolute path, and an error if nothing is there."""
    for path, mode in _DIRS.items():
        if path not in paths or paths[path].kind is Kind.DIR:
            yield Entry(path, Kind.DIR, mode)
    found = (*_accounts(paths), *_certificates(paths, packages), *_loader(paths), *_names(paths, packages))
    links = (
        _link("var/run", "/run"),
        _link("var/lock", "/run/lock"),
        *_python(paths, executable),
        *_alternatives(paths),
    )
    for entry in (*found, *links):
        if entry.path not in paths:
            yield entry


def _accounts(paths: Mapping[str, Entry]) -> Iterator[Entry]:
    for name, default, nonroot in (("passwd", _PASSWD, _NONROOT_USER), ("group", _GROUP, _NONROOT_GROUP)):
        master = _content(paths, f"usr/share/base-passwd/{name}.master")
        yield _file(f"etc/{name}", (default.encode() if master is None else _ended(master)) + nonroot.encode())


def _certificates(paths: Mapping[str, Entry], packages: Collection[str]) -> Iterator[Entry]:
    if "ca-certificates" not in packages:
        return
    names = sorted((path for path in paths if path.startswith(_CERTIFICATES) and path.endswith(".crt")), key=str.encode)
    yield _file(_BUNDLE, b"".join(_ended(_content(paths, name) or b"") for name in names))
    yield _link("usr/lib/ssl/cert.pem", f"/{_BUNDLE}")
    yield _link("usr/lib/ssl/certs", "/etc/ssl/certs")


def _loader(paths: Mapping[str, Entry]) -> Iterator[Entry]:
    yield _file("etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n")
    if "etc/ld.so.conf.d" not in paths:
        yield Entry("etc/ld.so.conf.d", Kind.DIR, 0o755)


def _names(paths: Mapping[str, Entry], packages: Collection[str]) -> Iterator[Entry]:
    if "libc6" in packages:
        masters = (master for path in _NSSWITCH_MASTERS if (master := _content(paths, path)) is not None)
        yield _file("etc/nsswitch.conf", next(masters, _NSSWITCH.encode()))


def _python(paths: Mapping[str, Entry], executable: str | None) -> Iterator[Entry]:
    if executable is None:
        return
    path = executable.lstrip("/")
    if path not in paths:
        raise BuilderError(
            f"none of the Debian packages has the interpreter {executable}",
            hint="add the package that has it (`python3.11` has /usr/bin/python3.11), or correct python.version",
        )
    if path != "usr/bin/python3":
        yield _link("usr/bin/python3", posixpath.relpath(f"/{path}", "/usr/bin"))


def _alternatives(paths: Mapping[str, Entry]) -> Iterator[Entry]:
    folders = {"/".join(path.split("/")[:3]) for path in paths if _MULTIARCH.match(path)}
    for folder in sorted(folders):
        for name, choices in _LIBRARIES.items():
            yield from _best(paths, folder, name, [f"{choice}/{name}" for choice in choices])
    for name, choices in _PROGRAMS.items():
        yield from _best(paths, "usr/bin", name, choices)


def _best(paths: Mapping[str, Entry], folder: str, name: str, choices: Sequence[str]) -> Iterator[Entry]:
    for choice in choices:
        if f"{folder}/{choice}" in paths:
            yield _link(f"{folder}/{name}", choice)
            return


def _content(paths: Mapping[str, Entry], path: str) -> bytes | None:
    entry = paths.get(path)
    return b"".join(chunks(entry.content)) if entry is not None and entry.kind is Kind.FILE else None


def _ended(data: bytes) -> bytes:
    return data if data.endswith(b"\n") or not data else data + b"\n"


def _file(path: str, data: bytes) -> Entry:
    return Entry(path, content=Inline(data))


def _link(path: str, target: str) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, linkname=target)
