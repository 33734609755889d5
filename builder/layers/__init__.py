"""Layers: entries become one gzip member whose bytes are a function of the entries alone."""
