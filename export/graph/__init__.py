"""Passes over ONNX graphs, one file a pass. No torch, and nothing heavy before a pass is imported.

1. A pass is ``def name(model: ir.Model, ...) -> Record``. It changes the model in place; who needs the old one as well
   passes ``model.clone()``.
2. The record is a frozen dataclass that says what changed, be it nothing.
3. What a pass needs of a graph it checks first, and raises ``ExportError`` otherwise. After an error the model is of no
   further use.
4. Afterwards the graph is valid ONNX with the input and, but for `mask.append_mask`, the output that it had.

`model` reads and writes models, `edit` holds what several passes do to a graph, `probe` runs one and gives its tensors.
Imports the runtime; calibration uses it too.
"""
