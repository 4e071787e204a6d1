"""The sub-command of calibration, with ``HELP``, ``add_arguments`` and ``run``."""
