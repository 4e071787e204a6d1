"""What people give and see: images, videos, overlays, plots and report pages.

Imports `errors` and `system`.
"""
