"""From an image to its mask: pre-processing, views, sliding windows, resampling, tiles, and streams of images.

Imports `backends`, `media`, `bundle` and what is below them.
"""
