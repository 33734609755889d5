"""`build lock`: makes, updates or checks the lock of a profile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.options import common, plain_http_option, profile_argument
from builder.cli.work import Work
from builder.errors import StaleLockError, UsageError
from builder.lock import Lock, LockedPlatform
from builder.lock.closure import named
from builder.oci.digest import Digest
from builder.staleness import staleness

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@click.command(
    help="Make or update the lock of PROFILE, `PROFILE.lock.json` beside it. What the profile still asks for stays as it is "
    "locked; --upgrade moves everything, or only the packages named NAME.",
    epilog="Example: build lock profiles/ocr.yaml --upgrade numpy pillow",
)
@profile_argument
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--upgrade", is_flag=True, help="Take the newest versions: of all packages, or of each NAME.")
@click.option("--check", is_flag=True, help="Change nothing; exit with 3 if the lock is missing or stale.")
@plain_http_option
@common
def lock(context: Context, profile: Path, names: tuple[str, ...], upgrade: bool, check: bool) -> None:
    """Prints the path of the lock, and on stderr what moved."""
    if names and not upgrade:
        raise UsageError(f"what is to happen with {', '.join(names)}?", hint="add --upgrade to move these packages")
    if odd := [name for name in names if not _NAME.fullmatch(name)]:
        raise UsageError(
            f"{odd[0]!r} is no name of a package", hint="give names alone, versions belong into the profile"
        )
    if check and upgrade:
        raise UsageError("--check changes nothing, --upgrade does", hint="leave one of them out")
    work = Work.open(context, profile)
    if check:
        _check(work)
    else:
        before = work.read_lock()
        after, changed = work.make_lock(frozenset(names) if names else upgrade)
        for line in _moves(before, after):
            context.progress.note(line)
        context.progress.note(f"{'wrote' if changed else 'unchanged:'} {work.lock_path}")
        for line in _stops(work, after):
            context.progress.note(line)
    click.echo(str(work.lock_path))


def _check(work: Work) -> None:
    hint = f"run `build lock {work.loaded.path}`"
    found = work.read_lock()
    if found is None:
        raise StaleLockError(f"{work.lock_path}: there is no lock", hint=hint)
    if reasons := staleness(work.loaded, work.local, found):
        raise StaleLockError(f"{work.lock_path} is stale: {'; '.join(reasons)}", hint=hint)


def _stops(work: Work, lock: Lock) -> Iterator[str]:
    """What cannot run, of images whose binaries were looked at to lock them."""
    for locked in lock.platforms:
        if locked.cuda or locked.gpu:
            from builder.cli import binaries  # few images have GPUs

            found = binaries.examine(work, lock, locked, fetch=False)
            for item in found.findings if found else ():
                if item.level == "error":
                    yield f"cannot run on {locked.platform}: {item.what}; `build plan --findings` says more"


def _moves(before: Lock | None, after: Lock) -> list[str]:
    """`+` what came, `-` what went, `~` what moved, for each platform."""
    if before is None:
        return []
    then = {item.platform: _versions(item) for item in before.platforms}
    lines = []
    for item in after.platforms:
        old, new = then.get(item.platform, {}), _versions(item)
        for name in sorted(old.keys() | new.keys()):
            if name not in old:
                lines.append(f"+ {name} {new[name]} ({item.platform})")
            elif name not in new:
                lines.append(f"- {name} {old[name]} ({item.platform})")
            elif old[name] != new[name]:
                lines.append(f"~ {name} {old[name]} → {new[name]} ({item.platform})")
    return lines + _model_moves(before, after)


def _model_moves(before: Lock, after: Lock) -> list[str]:
    old, new = ({model.name: Digest.parse(model.manifest).short for model in lock.models} for lock in (before, after))
    lines = [f"+ model {name} {new[name]}" for name in sorted(new.keys() - old.keys())]
    lines += [f"- model {name} {old[name]}" for name in sorted(old.keys() - new.keys())]
    both = sorted(name for name in new.keys() & old.keys() if new[name] != old[name])
    return lines + [f"~ model {name} {old[name]} → {new[name]}" for name in both]


def _versions(item: LockedPlatform) -> dict[str, str]:
    debs = {deb.name: deb.version for deb in item.debian.packages} if item.debian else {}
    image = {f"base image {item.image.source}": item.image.manifest[7:19]} if item.image else {}
    image |= {f"{name} of the base image": version for name, version in item.image.packages} if item.image else {}
    if item.nix:
        found = sorted({output for root in item.nix.roots for output in root.outputs})
        debs |= {named(output)[0]: f"{named(output)[1]} {output[:8]}".strip() for output in found}
    return debs | image | {wheel.name: " without ".join((wheel.version, *wheel.drop)) for wheel in item.wheels}
