"""The format of a bundle: its manifest, its artifacts and their records, and how each is read and written.

Imports `errors` and `system`.
"""
