"""One reader for each kind of network: it says whether a checkpoint is of its kind, or why not, and reads its spec.

Imports `models`, and of `checkpoint` the file, its configuration and the table of settings.
"""
