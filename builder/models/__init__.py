"""Models as artifacts of their own: published once, pulled whole or by the tensor at run time."""
