"""Models in a smaller precision: weights cast or quantised tensor by tensor, and the documents about them rewritten.

Everything but the numbers themselves (`kernels`) works without numpy, which is imported when a conversion begins.
"""

FORMAT = 1
"""The number of the rules of conversion: raised whenever the same files would give other bytes than before."""
