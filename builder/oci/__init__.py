"""OCI values and layouts: digests, descriptors, media types. Imports nothing of builder but errors."""
