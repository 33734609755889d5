"""`build verify`: whether what is published is what it says, and what its lock makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder import attach
from builder import lock as locks
from builder import plan as plans
from builder import verify as proof
from builder.assemble import Engine, assemble
from builder.cli.context import Context
from builder.cli.engine import engine_of, engine_options
from builder.cli.options import common, format_option, plain_http_option
from builder.cli.work import fetcher, jobs
from builder.errors import BuilderError, StaleLockError, UsageError
from builder.image import Assembled
from builder.lock import Lock
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.published import by_platform, read_top
from builder.oci.spec import Descriptor
from builder.packing import Folder
from builder.places.destination import Destination
from builder.places.opening import open_source
from builder.progress import counted, human_size
from builder.store import Store
from builder.verify import Finding, Structure

if TYPE_CHECKING:
    from builder.verify.models import VerifiedModel


@click.command(
    help="Verify the image REF, in a registry `HOST/REPOSITORY[:TAG]`, an OCI layout `oci:DIR[:TAG]` or an archive "
    "`oci-archive:FILE[:TAG]`: read it whole, check its documents, digests and SOCI index, rebuild it from its lock and say "
    "that it is identical, or the first layer, file and byte that is not. The exit status is 3 if it is not as it should be.",
    epilog="Example: build verify oci:out/ocr --lock profiles/ocr.lock.json",
)
@click.argument("ref")
@click.option(
    "--lock",
    "lock_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The lock to rebuild it from.  [default: the one that is attached to the image]",
)
@click.option("--no-models", is_flag=True, help="Do not read the models that the image names.")
@click.option("--quick", is_flag=True, help="Do not rebuild: check that the image is what it says.")
@click.option(
    "--lazy",
    is_flag=True,
    help="Mount it on the real lazy stack instead: does a layer come whole that need not? Needs root.",
)
@click.option(
    "--state",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where that stack keeps what it has, for as long as it runs.",
)
@engine_options
@plain_http_option
@format_option
@common
def verify(
    context: Context,
    ref: str,
    lock_path: Path | None,
    no_models: bool,
    quick: bool,
    lazy: bool,
    folder: Path | None,
    engine: dict[str, Any] | None,
    form: str,
) -> int:
    """Verifies one image; returns the exit status."""
    if lazy:
        from builder.cli import lazily  # what starts images takes long to import

        if quick or lock_path:
            raise UsageError("--lazy neither rebuilds nor reads the image", hint="leave out --quick and --lock")
        return lazily.verify(context, ref, folder, form)
    if quick and engine:
        raise UsageError("--quick rebuilds nothing, so that it has no use for --engine", hint="leave out one of them")
    if quick and lock_path:
        raise UsageError("--quick rebuilds nothing, so that it has no use for --lock", hint="leave out one of them")
    destination = Destination.parse(ref)
    source, reference = open_source(destination, context)
    descriptor = source.resolve(reference)
    lock, failure = None, None
    if not quick:
        try:  # before anything large is read
            lock = _lock(source, descriptor, destination, lock_path)
        except BuilderError as error:
            if not proof.says_no(error):
                read_top(source, descriptor)  # raises where it is no image at all
                raise
            failure = error
    found = proof.examine(source, descriptor, context.progress)
    findings = list(found.findings)
    models, wrong = ((), ()) if no_models else _models(source, found, context)
    findings += wrong
    if failure and not findings:
        raise failure
    if lock and found.top:
        near = lock_path.absolute().parent if lock_path else None
        findings += _rebuilt(context, source, found, lock, near, engine_of(context, engine, rebuild=True))
    verdict = _Verdict(str(destination), found, tuple(findings), lock if found.top else None, models)
    click.echo(json.dumps(verdict.document(), indent=2, ensure_ascii=False) if form == "json" else verdict.text())
    return 3 if findings else 0


@dataclass(frozen=True)
class _Verdict:
    """What was found; `lock` is what the image was rebuilt from, if it was."""

    ref: str
    found: Structure
    findings: Sequence[Finding]
    lock: Lock | None
    models: Sequence[VerifiedModel] = ()

    @property
    def word(self) -> str:
        if self.lock is None:
            return "damaged" if self.findings else "valid"
        return "different" if self.findings else "identical"

    def text(self) -> str:
        lines = [f"{self.ref}  {self.found.descriptor.digest}"]
        for image in self.found.verified:
            members, spans = sum(layer.members for layer in image.layers), sum(layer.spans for layer in image.layers)
            read = (counted(len(image.layers), "layer"), counted(members, "file"), counted(spans, "span"))
            lines.append(f"{image.platform}: read {', '.join(read)}")
        for model in self.models:
            there = f"read {counted(model.files, 'file')}, {human_size(model.size)}" if model.files else ""
            lines.append(f"model {model.name} {model.digest.short}: {there or 'it is in another place'}")
        lines += [str(finding) for finding in self.findings]
        explained = {
            "valid": "valid: documents, digests, sizes, diff_ids and SOCI index are right; nothing was rebuilt",
            "identical": "identical: rebuilt from the lock, every byte is the same",
            "damaged": f"damaged: {_count(self.findings)}; nothing was rebuilt",
            "different": f"different: {_count(self.findings)}",
        }
        return "\n".join([*lines, explained[self.word]])

    def document(self) -> dict[str, object]:
        return {
            "reference": self.ref,
            "digest": str(self.found.descriptor.digest),
            "verdict": self.word,
            "rebuilt": self.lock is not None,
            "lock": str(Digest.of(locks.encode(self.lock).encode())) if self.lock else None,
            "models": [
                {"name": model.name, "digest": str(model.digest), "files": model.files, "size": model.size}
                for model in self.models
            ],
            "findings": [finding.document() for finding in self.findings],
            "platforms": {
                platform: {
                    "digest": str(image.digest),
                    "layers": [
                        {
                            "name": layer.name,
                            "digest": str(layer.digest),
                            "size": layer.size,
                            "unpacked": layer.tar_size,
                            "files": layer.members,
                            "spans": layer.spans,
                        }
                        for layer in image.layers
                    ],
                }
                for platform, image in by_platform(
                    (image.platform, image.digest, image) for image in self.found.verified
                ).items()
            },
        }


def _models(source: Source, found: Structure, context: Context) -> tuple[Sequence[VerifiedModel], Sequence[Finding]]:
    from builder.verify import models  # what it imports takes long, and few images have models

    return models.check(source, found, context.progress)


def _count(findings: Sequence[Finding]) -> str:
    return f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"


def _lock(source: Source, descriptor: Descriptor, destination: Destination, path: Path | None) -> Lock:
    """The lock that was named, else the one that is attached to the image."""
    if path:
        try:
            return locks.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise locks.LockError(f"{path}: cannot be read: {error}") from error
    attached = attach.locks_of(source, descriptor.digest)
    if not attached:
        raise BuilderError(
            f"{destination}: no lock is attached to it", hint="name its lock with --lock FILE, or use --quick"
        )
    return attached[0]


def _rebuilt(
    context: Context, source: Source, found: Structure, lock: Lock, near: Path | None, engine: Engine | None
) -> list[Finding]:
    """Rebuilds the image in a store of its own, whose inputs come from this one's and from where they always come from."""
    if lock.format != locks.FORMAT:
        raise StaleLockError(f"the lock is of format {lock.format}; this version makes format {locks.FORMAT} only")
    with context.store.in_use(), context.store.workspace() as folder:
        own = proof.own_files(source, found, lock, near, _made(folder / "own"))
        image, store = _assemble(context, source, own.lock, own.folder, folder / "store", engine)
        missed = {finding.path for finding in own.findings}
        compared = proof.compare(source, found, image, store)
        return [*own.findings, *(finding for finding in compared if not finding.path or finding.path not in missed)]


def _assemble(
    context: Context, source: Source, lock: Lock, own: Folder, root: Path, engine: Engine | None
) -> tuple[Assembled, Store]:
    """The layers of a base image come out of the image that is verified, where no other place has them."""
    settings = context.settings
    mirrors = (str(settings.store), *settings.mirrors)
    other = replace(context, settings=replace(settings, store=root, mirrors=mirrors))
    brings = fetcher(other, lambda: (source, None))
    image = assemble(plans.plan(lock), other.store, brings, own, other.progress, jobs(), engine=engine)
    return image, other.store


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
