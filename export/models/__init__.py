"""Networks in torch, one file an architecture, whose modules have the names of their checkpoints' keys.

Imports nothing of export.
"""
