"""The machine and its files, for everything above.

CPUs, GPUs and packages; files written whole or not at all, locked, cached; text for terminals. Imports `errors` only.
"""
