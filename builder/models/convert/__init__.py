"""Models in a smaller precision: weights cast or quantised tensor by tensor, and the documents about them rewritten.

Everything but the numbers themselves (`kernels`, `stream`) works without numpy; numpy is imported when a conversion begins.
"""
