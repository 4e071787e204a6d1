"""What can be quantized, and the graph with QuantizeLinear and DequantizeLinear. Imports `observe` and what it may."""
