"""Back ends: an artifact opened for running, arrays in, arrays out.

Each is one module named after the library that it needs, imported only when it is used. Imports `bundle` and what is
below it.
"""
