"""The accuracy of depth networks: data sets, the metrics of the literature, the gate in them.

It measures in one process: no state is kept, and nothing is resumed or divided.
"""
