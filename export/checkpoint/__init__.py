"""Reading a checkpoint without running it: the file, its configuration, what network it is, weights into their places.

Imports `models` and the runtime.
"""
