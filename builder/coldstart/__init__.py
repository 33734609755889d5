"""Cold starts, measured: an image starts on the real stack, from nothing, and every phase is told apart."""
