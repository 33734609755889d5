"""Says which PyTorch this is, multiplies two matrices on the best device at hand, and tells how long it took."""

from __future__ import annotations

import time

import torch


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.rand(2048, 2048, device=device) for _ in range(2))
    begun = time.perf_counter()
    total = float((left @ right).sum())  # reading the number waits for the device
    print(f"torch {torch.__version__} on {device}: sum {total:.0f} in {time.perf_counter() - begun:.3f} s")


if __name__ == "__main__":
    main()
