"""Layers that others have packed: found in a registry by their keys, believed for the signature of somebody who is trusted."""
