"""One page about a bundle for those who decide: every artifact's accuracy, size, speed and proof, in plain words.

Imports `evaluation`, the rest of `benchmark` and what is below them.
"""
