"""Speed, memory and start-up of artifacts, side by side, and their report.

Imports `segmenter` and what is below it; `overview` also `evaluation`.
"""
