"""CUDA out of NVIDIA's wheels: which of them a flavour is, where users of nvidia/cuda look for them, what a container is told."""
