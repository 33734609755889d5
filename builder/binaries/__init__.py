"""What the binaries of inputs say about themselves: libraries, symbol versions, GPU architectures."""
