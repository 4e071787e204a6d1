"""The sub-commands of export: one module each, with ``HELP``, ``add_arguments`` and ``run``."""
