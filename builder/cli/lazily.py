"""`build verify --lazy`: whether the real stack starts an image lazily, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.starting import STATE, Options, Starter
from builder.cli.work import platform_name
from builder.coldstart import laziness
from builder.coldstart.images import look
from builder.coldstart.laziness import LayerMount
from builder.coldstart.ready import Ready
from builder.examine import examine
from builder.places.opening import open_source
from builder.progress import counted, human_size

_TIMEOUT = 3600.0
_TOO_SMALL = 256 << 10
"""stargz-snapshotter fetches 50 kB at a time: of so small a layer, nothing shows that it was mounted before it came."""
_WORDS = {
    "soci": ("whole, has no spans", "WHOLE, though it has spans"),
    "stargz": ("whole, small or no table", "WHOLE, though it has one"),
}


def verify(context: Context, ref: str, folder: Path | None, form: str) -> int:
    """Mounts the image as a node does, and shows what came of each layer; 3 if one came whole that need not."""
    options = Options(ref, (), Ready.parse("exit"), _TIMEOUT, "", (), "", None, folder or STATE)
    source, reference = open_source(ref, context)
    tables = look(source, reference, f"linux/{platform_name()}").tables
    starter = Starter.prepare(context, options, "stargz" if tables else "soci")
    images = examine(source, reference).images
    layers = [layer for image in images if image.platform == starter.wanted.platform for layer in image.layers]
    spanned = {layer.digest for layer in layers if layer.spans}
    if tables:
        spanned = {layer.digest for layer in layers if layer.digest in tables and layer.size > _TOO_SMALL}
    with starter.stack() as (running, gateway):
        found = laziness.mounts(running, gateway, starter.wanted, starter.image, spanned)
    names = {layer.digest: layer.name for layer in layers}
    rows = [(names.get(mount.digest, ""), mount) for mount in found]
    is_lazy = any(mount.spanned for mount in found) and all(mount.lazy for mount in found if mount.spanned)
    click.echo(_document(starter, rows, is_lazy) if form == "json" else _text(starter, rows, is_lazy))
    return 0 if is_lazy else 3


def _text(starter: Starter, rows: Sequence[tuple[str, LayerMount]], is_lazy: bool) -> str:
    lines = [f"{starter.image.top.digest}  {starter.wanted.platform}"]
    for name, mount in rows:
        came = f"{human_size(mount.moved)} of {human_size(mount.size)}"
        lines.append(f"  {mount.digest.short}  {_word(mount, starter):26}  {came:22}  {name}".rstrip())
    whole = sum(not mount.lazy for _, mount in rows if mount.spanned)
    have, ztocs = ("a table", "tables") if starter.snapshotter == "stargz" else ("spans", "ztocs")
    if is_lazy:
        lines.append(f"lazy: no layer that has {have} came whole")
    elif whole:
        lines.append(
            f"not lazy: {counted(whole, 'layer')} that {'has' if whole == 1 else 'have'} {have} came whole; "
            f"`build verify --quick` says if {ztocs} are right"
        )
    elif starter.snapshotter == "stargz":
        lines.append(f"not lazy, as far as that shows: no layer with a table has more than {human_size(_TOO_SMALL)}")
    else:
        lines.append(
            "not lazy: no layer has spans: publish with `publish.soci.enabled`, not as zstd, and layers of min-layer-size or more"
        )
    return "\n".join(lines)


def _word(mount: LayerMount, starter: Starter) -> str:
    if mount.lazy and (mount.spanned or starter.snapshotter == "stargz"):
        return "lazily"
    return _WORDS[starter.snapshotter][mount.spanned]


def _document(starter: Starter, rows: Sequence[tuple[str, LayerMount]], is_lazy: bool) -> str:
    document = {
        "digest": str(starter.image.top.digest),
        "platform": starter.wanted.platform,
        "lazy": is_lazy,
        "layers": [
            {
                "name": name,
                "digest": str(mount.digest),
                "size": mount.size,
                "moved": mount.moved,
                "spans": mount.spanned,
                "lazy": mount.lazy,
            }
            for name, mount in rows
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)
