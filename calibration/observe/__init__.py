"""What a network's tensors hold on calibration images. Imports the runtime and `export.graph`."""
