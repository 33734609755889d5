"""What became of the blobs of a delivery, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from builder.oci.artifact import TITLE
from builder.oci.content import Outcome
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.places.delivery import Delivered
from builder.progress import human_size


def delivery_lines(delivered: Delivered, names: Mapping[Digest, str], what: str = "") -> Iterator[str]:
    """A line for each blob that was not there before and, for each tag, one that sums all up; `names` say what blobs are."""
    for descriptor, outcome in delivered.blobs:
        if outcome is Outcome.PRESENT:
            continue
        size = human_size(descriptor.size)
        name = names.get(descriptor.digest) or _file_of_model(descriptor) or descriptor.media_type
        yield f"  {outcome.value:7}  {descriptor.digest.short}  {size:>8}  {name}"
    moved, mounted, present = (delivered.size(outcome) for outcome in Outcome)
    rate = f" ({human_size(delivered.rate)}/s)" if moved else ""
    count = delivered.count(Outcome.PRESENT)
    there = f"{human_size(present)} present ({count} of {len(delivered.blobs)} blobs)"
    sums = f"{human_size(moved)} moved{rate}, {human_size(mounted)} mounted, {there}"
    for name in places(delivered):
        yield f"{name}: {what}{sums}"


def delivery_document(delivered: Delivered, names: Mapping[Digest, str]) -> Iterator[dict[str, object]]:
    """The same as documents, one for each tag."""
    for name in places(delivered):
        yield {
            "destination": name,
            "digest": str(delivered.digest),
            "new": _sums(delivered, Outcome.MOVED, Outcome.MOUNTED),
            **{outcome.value: _sums(delivered, outcome) for outcome in Outcome},
            "seconds": round(delivered.seconds, 3),
            "bytes_per_second": round(delivered.rate),
            "blobs": [
                {
                    "digest": str(descriptor.digest),
                    "size": descriptor.size,
                    "mediaType": descriptor.media_type,
                    "name": names.get(descriptor.digest),
                    "outcome": outcome.value,
                }
                for descriptor, outcome in delivered.blobs
            ],
        }


def _file_of_model(descriptor: Descriptor) -> str | None:
    is_model = descriptor.media_type.startswith("application/vnd.cncf.model.")
    title = descriptor.annotations.get(TITLE, "") if is_model else ""
    return "".join(character if character.isprintable() else "?" for character in title) or None


def places(delivered: Delivered) -> list[str]:
    """Where it can be found now: by each tag, or by its digest if there is none."""
    name = delivered.sink.name
    return [f"{name}:{tag}" for tag in delivered.sink.tags] or [f"{name}@{delivered.digest}"]


def _sums(delivered: Delivered, *outcomes: Outcome) -> dict[str, int]:
    return {"blobs": delivered.count(*outcomes), "bytes": delivered.size(*outcomes)}
