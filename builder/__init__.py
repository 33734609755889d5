"""Layerwright: reproducible, layer-ordered, lazily startable OCI images for AI and GPU containers."""

__version__ = "0.1.0"
