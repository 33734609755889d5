"""Facts that were read once stay in the store: by the digest of the input and the format of facts."""

from __future__ import annotations

import json

from builder.binaries.facts import FORMAT, InputFacts, dump, load
from builder.oci.digest import Digest
from builder.store import Store

_KIND = "binaries"


def known(store: Store, sha256: str) -> InputFacts | None:
    """The facts of the input with that digest (in hex), if the store has them."""
    record = store.record(_KIND, _key(sha256))
    if record is None:
        return None
    try:
        return load(json.loads(store.read(Digest.parse(record["objects"][0]))))
    except (LookupError, ValueError, TypeError):  # a record that says too little counts as absent
        return None


def remember(store: Store, sha256: str, facts: InputFacts) -> None:
    """Keeps the facts of the input with that digest (in hex)."""
    digest = store.put(json.dumps(dump(facts), separators=(",", ":")).encode())
    store.put_record(_KIND, _key(sha256), {"objects": [str(digest)]})


def _key(sha256: str) -> str:
    return f"{FORMAT}-{sha256}"
