"""What a mean IoU hides: boundaries, the class that lost most, and how far scores can be believed.

Imported by `denseport.runtime.evaluation.state` and what is above it.
"""
