"""The sub-commands of the runtime: one module each, with ``HELP``, ``add_arguments`` and ``run``."""
