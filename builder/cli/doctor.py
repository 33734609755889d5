"""`build doctor`: what this machine has of what builds need, and what to do about what it has not."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.errors import BuilderError, CheckError, FetchError, UsageError
from builder.progress import human_size

if TYPE_CHECKING:
    from builder.cli.context import Context

_LOW_DISK = 10 << 30
_OLDEST_PYTHON = (3, 11)
_WIDTH = 22  # of the longest name
_OPTIONAL_TOOLS = {
    "umoci": "unpacks images, to run them without a container engine",
    "skopeo": "copies images to registries and engines",
    "nix": "builds the inputs that a profile takes from Nix",
}


class State(StrEnum):
    """`WARNING`: some things will not work, or not well; `MISSING`: something that is needed is not there."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty where all is well."""

    name: str
    state: State
    found: str
    remedy: str = ""


@click.command(
    help="Show what is found of what builds need, and what to do about what is not.",
    epilog="Example: build doctor --online",
)
@click.option("--online", is_flag=True, help="Also ask the mirrors and the package index.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
@click.pass_obj
def doctor(context: Context, online: bool, form: str) -> None:
    """Prints every finding; exits with 3 if something needed is missing."""
    if online and context.settings.offline:
        raise UsageError("--online and --offline contradict one another")
    findings = []
    for finding in _examine(context, online):
        findings.append(finding)
        if form == "text":
            click.echo(f"{finding.state:8} {finding.name:{_WIDTH}} {finding.found}")
            if finding.remedy:
                click.echo(f"{'':{_WIDTH + 9}} → {finding.remedy}")
    if form == "json":
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    missing = [finding.name for finding in findings if finding.state is State.MISSING]
    if missing:
        raise CheckError(f"missing: {', '.join(missing)}", hint="the lines above say what to do")


def _examine(context: Context, online: bool) -> Iterator[Finding]:
    yield _python()
    yield _inflate()
    yield _uv()
    yield _tool("gpgv", State.MISSING, "verifies Debian's signatures", "install gpgv (Debian: apt install gpgv)")
    yield from _store(context)
    yield _config(context)
    yield from _network(context)
    yield from _debian(context, online)
    yield from _index(context, online)
    yield from _mirrors(context, online)
    yield from _layer_cache(context)
    yield _zstd()
    yield from _libraries()
    for name, purpose in _OPTIONAL_TOOLS.items():
        yield _tool(name, State.WARNING, purpose, f"optional: install {name}")
    yield from _starting()


def _starting() -> Iterator[Finding]:
    """What `build start`, `build trace` and `build verify --lazy` run."""
    from builder.coldstart.tools import PROGRAMS

    for name, package in PROGRAMS.items():
        yield _tool(name, State.WARNING, "starts images to measure them", f"optional: {package}")
    if not Path("/dev/fuse").exists():
        remedy = "optional: load the kernel's module: modprobe fuse"
        yield Finding("/dev/fuse", State.WARNING, "not there; lazy layers are mounted by it", remedy)
    else:
        yield Finding("/dev/fuse", State.OK, "there")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", State.MISSING, version, "install Python 3.11 or later")
    return Finding("python", State.OK, f"{version} ({sys.executable})")


def _inflate() -> Finding:
    from builder.layers.deflate import engine

    try:
        return Finding("inflate engine", State.OK, engine().name)
    except BuilderError as error:
        return Finding("inflate engine", State.MISSING, str(error), error.hint or "install this program again")


def _zstd() -> Finding:
    from builder.layers import zstd

    try:
        zstd.encoder(zstd.VERSION, zstd.LEVEL)
    except BuilderError as error:
        purpose = f"{zstd.VERSION} is not there; compresses layers where a profile asks for it"
        return Finding("zstd", State.WARNING, purpose, f"optional: {error.hint}")
    return Finding("zstd", State.OK, f"{zstd.VERSION}, for publish.compression")


def _uv() -> Finding:
    import uv

    try:
        return Finding("uv", State.OK, uv.find_uv_bin())
    except FileNotFoundError:
        return Finding("uv", State.MISSING, "not found", "install it again: pip install --force-reinstall uv")


def _tool(name: str, otherwise: State, purpose: str, remedy: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, otherwise, f"not found; {purpose}", remedy)
    return Finding(name, State.OK, path)


def _libraries() -> Iterator[Finding]:
    for name, purpose in (("numpy", "converts models"), ("huggingface_hub", "finds models of hf:// sources")):
        if importlib.util.find_spec(name) is None:
            remedy = "optional: pip install 'layerwright[models]'"
            yield Finding(name, State.WARNING, f"not found; {purpose}", remedy)
        else:
            yield Finding(name, State.OK, purpose)


def _store(context: Context) -> Iterator[Finding]:
    from builder.store import free_bytes

    root = context.settings.store
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        yield Finding(
            "store",
            State.MISSING,
            f"{root}: {existing} cannot be written",
            f"make {existing} writable for you, or name another place with XDG_CACHE_HOME",
        )
    else:
        yield Finding("store", State.OK, str(root))
    free = free_bytes(root)
    if free < _LOW_DISK:
        yield Finding(
            "free disk",
            State.WARNING,
            human_size(free),
            "large images need more: free some, `build cache gc --max-size 5GB` removes what was not used lately",
        )
    else:
        yield Finding("free disk", State.OK, human_size(free))


def _config(context: Context) -> Finding:
    there = context.config.is_file()
    return Finding("config file", State.OK, str(context.config) if there else f"none ({context.config})")


def _network(context: Context) -> Iterator[Finding]:
    from builder.client import redact

    network = context.settings.network
    for name, proxy in (("http proxy", network.http_proxy), ("https proxy", network.https_proxy)):
        if proxy is not None:
            yield Finding(name, State.OK, redact(proxy if "://" in proxy else f"http://{proxy}"))
    if network.ca_file is not None and not network.ca_file.is_file():
        yield Finding(
            "certificates",
            State.MISSING,
            f"{network.ca_file}: no such file",
            "correct SSL_CERT_FILE (or REQUESTS_CA_BUNDLE), or unset it",
        )
    elif network.ca_file is not None:
        yield Finding("certificates", State.OK, str(network.ca_file))


def _debian(context: Context, online: bool) -> Iterator[Finding]:
    from builder.client import redact
    from builder.sources import apt

    mirrors = apt.mirrors(overrides=context.settings.origins, keyrings=context.settings.keyrings)
    suites = [suite for source in apt.read_sources() for suite in source.suites if "/" not in suite]
    if not mirrors:
        yield Finding(
            "debian",
            State.WARNING,
            "no mirror is configured; profiles with base.debian need one",
            f'add `debian = "http://…"` under [origins] in {context.config}, or a source of Debian to apt',
        )
    for origin, mirror in sorted(mirrors.items()):
        yield Finding(origin, State.OK, ", ".join(map(redact, mirror.uris)))
        keyrings = [str(path) for path in mirror.keyrings if path.is_file()]
        if not keyrings:
            yield Finding(
                f"{origin} keys",
                State.MISSING,
                "no keyring of Debian's archive",
                "install debian-archive-keyring",
            )
        else:
            yield Finding(f"{origin} keys", State.OK, ", ".join(keyrings))
        if online:
            wanted = [suite for suite in suites if suite.endswith("-security") == (origin == apt.SECURITY)]
            suite = wanted[0] if wanted else {apt.SECURITY: "stable-security"}.get(origin, "stable")
            for uri in mirror.uris:
                yield _answer(context, origin, f"{uri}/dists/{suite}/InRelease")


def _index(context: Context, online: bool) -> Iterator[Finding]:
    from builder import process
    from builder.sources import indexes

    try:
        found = indexes.configured(context.environ, explicit=context.settings.origins.get("pypi", ()), run=process.run)
    except BuilderError as error:
        remedy = error.hint or f"set {indexes.SETTING}"
        yield Finding("package index", State.WARNING, str(error), remedy)
        return
    for index in found:
        yield Finding("package index", State.OK, str(index))
        if online:
            yield _answer(context, "package index", f"{index.url}/pip/")


def _mirrors(context: Context, online: bool) -> Iterator[Finding]:
    from builder.client import file_of, is_local, redact

    for mirror in context.settings.mirrors:
        if mirror.startswith(("http://", "https://")):
            yield Finding("mirror", State.OK, redact(mirror))
            if online:
                yield _answer(context, "mirror", mirror)
        elif (file_of(mirror) if is_local(mirror) else Path(mirror)).is_dir():
            yield Finding("mirror", State.OK, mirror)
        else:
            yield Finding("mirror", State.WARNING, f"{mirror}: no such folder", "correct or remove it in the settings")


def _layer_cache(context: Context) -> Iterator[Finding]:
    settings = context.settings.cache
    if settings is None:
        return
    from builder.cli.layercache import cache_of

    try:
        cache_of(context, settings)
    except BuilderError as error:
        yield Finding("layer cache", State.WARNING, str(error), error.hint or "correct [cache] in the settings")
        return
    who = (
        "anybody" if settings.unsigned else ", ".join(key.partition(":")[0] for key in settings.trust) or "our own key"
    )
    sends = ", filled from here" if settings.sign or settings.unsigned else ""
    yield Finding("layer cache", State.OK, f"{settings.at}: layers of {who}{sends}")


def _answer(context: Context, name: str, url: str) -> Finding:
    """Whether a place answers, asked once; that it does not have this very page is an answer, too."""
    from dataclasses import replace

    from builder.client import Client, NotFoundError, redact

    client = Client(replace(context.settings.network, attempts=1))
    try:
        client.get(url)
    except NotFoundError:
        return Finding(name, State.OK, f"{redact(url)}: answers")
    except FetchError as error:
        return Finding(name, State.WARNING, str(error), error.hint or "check the network, proxies and the address")
    return Finding(name, State.OK, f"{redact(url)}: answers")
