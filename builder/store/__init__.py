"""The local store: bytes under their digest and small records, shared by concurrent processes and threads.

    ROOT/sha256/ab/<hex>       objects, mode 0444; the modification time is the time of the last use
    ROOT/records/<kind>/<key>  small JSON documents
    ROOT/partial/<hex>         downloads that were interrupted and can be resumed, with their journals
    ROOT/tmp/                  files being written; each is locked by the process that writes it
    ROOT/locks/                one empty file per lock

Nothing appears under its name before its bytes are complete and on the disk.
"""

from builder.store.objects import MAKE_ROOM, Store, free_bytes, hash_of, partial_lock

__all__ = ["MAKE_ROOM", "Store", "free_bytes", "hash_of", "partial_lock"]
