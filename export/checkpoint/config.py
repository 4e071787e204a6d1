"""Read the configuration text in a checkpoint, as data.

mmcv and mmengine store the resolved configuration as Python source made of assignments of literals and ``dict(...)``
calls. It is parsed with ``ast`` and never executed; an assignment that is anything else is left out.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Any

__all__ = ["CORRECT", "look_up", "parse_config"]

# The remedy for a setting that the weights or Denseport contradict.
CORRECT = "Correct the configuration that the file carries (meta), and save it again with torch.save."


def parse_config(text: str) -> dict[str, Any]:
    """Top-level assignments of a configuration text; empty where the text is not Python."""
    try:
        with warnings.catch_warnings(action="ignore"):  # a path such as 'C:\\data' is an unknown escape
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    config: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                config[node.targets[0].id] = _evaluate(node.value)
            except (TypeError, ValueError, RecursionError, MemoryError):
                continue
    return config


def _evaluate(node: ast.expr) -> Any:
    """The value of a literal or of ``dict(key=literal, …)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _evaluate(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _evaluate(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, ast.List):
        return [_evaluate(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(item) for item in node.elts)
    return ast.literal_eval(node)


def look_up(config: Mapping[str, Any], *path: str, default: Any = None) -> Any:
    """``config[path[0]][path[1]]…``, or ``default`` where a step is missing or no dict."""
    value: Any = config
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value
