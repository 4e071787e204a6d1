"""Which step between a checkpoint and an artifact lost what.

Imports all other folders of `export`, and the runtime.
"""
