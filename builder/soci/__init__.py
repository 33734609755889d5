"""SOCI v2: ztocs and the index that lets a node start an image before it is pulled."""
