"""Nix as the engine: layers as derivations, so that its remote builders and binary caches serve builds.

Programs of Nix are run, nothing of it is linked. What comes out has the digests that packing in this process gives.
"""
