"""Which layers stay in floating point: losses measured, kept, traded for speed. Imports `quantize` and `observe`."""
