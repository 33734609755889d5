"""Whether a lock still belongs to a profile, and why not."""

from __future__ import annotations

from collections.abc import Sequence

from builder.asked import request_in, request_of
from builder.lock import FORMAT, Lock, LockedLocal, LockedTemplate
from builder.own import Local, compression, execution, soci_settings
from builder.profile import LoadedProfile


def staleness(loaded: LoadedProfile, found: Local, lock: Lock) -> list[str]:
    """Why a lock does not belong to a profile as it is now; empty if it does. Nothing is looked up."""
    profile = loaded.profile
    reasons = []
    if lock.format != FORMAT:
        reasons.append(f"it was made for format {lock.format} of images, this version builds format {FORMAT}")
    if lock.name != profile.name:
        reasons.append(f"it is the lock of {lock.name}, not of {profile.name}")
    elif lock.profile != str(profile.digest):
        bases = _changed_includes(lock, found)
        reasons.append("the profile has changed" + (f", by {bases} that it extends" if bases else ""))
    reasons += _differences("file", lock.files, found.files)
    reasons += _differences("template", lock.templates, found.templates)
    if (lock.start and lock.start.unordered) != found.start and not reasons:
        reasons.append("the trace of its start has changed")
    if profile.models or lock.models:
        from builder.models import locking  # it takes long to import, and few profiles have models

        reasons += locking.differences(profile.models, lock.models, found.models)
    if profile.nix and not reasons and any(item.nix for item in lock.platforms):
        from builder.sources import nix  # few profiles have anything from Nix

        now = [nix.expressions(loaded.root, item) for item in profile.from_nix]
        for item in lock.platforms:
            then = [root.expressions for root in item.nix.roots] if item.nix else []
            pairs = zip(profile.from_nix, then, now, strict=False)
            reasons += [f"nix: {each.source} has changed" for each, old, new in pairs if old != new]
        reasons = list(dict.fromkeys(reasons))
    if (bases := _changed_includes(lock, found)) and not reasons:
        reasons.append(f"{bases} that it extends has changed")
    for locked in lock.platforms:
        if (
            not reasons
            and (before := request_in(locked))
            and before != request_of(loaded, locked.platform, locked.image)
        ):
            reasons.append(f"the requirements of {locked.platform} have changed")
    wanted = (execution(profile), soci_settings(profile, lock.soci), compression(profile, lock))
    platforms = [item.platform for item in lock.platforms] == sorted(profile.platforms)
    if not reasons and not (platforms and (lock.image, lock.soci, lock.compression) == wanted):
        reasons.append("its settings are not those of the profile")
    return reasons


def _changed_includes(lock: Lock, found: Local) -> str:
    """The profiles that are extended, and whose text is not that of the lock, by their names."""
    return ", ".join(sorted({include.source for include in {*lock.includes} ^ {*found.includes}}))


def _differences(
    noun: str,
    then: Sequence[LockedLocal] | Sequence[LockedTemplate],
    now: Sequence[LockedLocal] | Sequence[LockedTemplate],
) -> list[str]:
    before, after = {item.to: item for item in then}, {item.to: item for item in now}
    changed = [f"{noun} {after[to].source} has changed" for to in after if to in before and after[to] != before[to]]
    added = [f"{noun} {after[to].source} is new" for to in after if to not in before]
    return sorted(changed + added + [f"{noun} {before[to].source} is gone" for to in before if to not in after])
