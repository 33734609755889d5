"""Base images: images of others that ours stand on, their layers unchanged."""
