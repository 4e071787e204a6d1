"""Accuracy on labelled images: data sets, metrics, the gate, resuming, shards, and the report.

Imports `segmenter` and what is below it.
"""
