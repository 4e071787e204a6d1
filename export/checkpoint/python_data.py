"""Python text as data: assignments are evaluated by their syntax, and nothing runs.

Data are assignments to names of literals, lists, tuples, ``dict(...)``, earlier names, ``_base_.x`` and
``{{_base_.x}}``, subscripts, sums and products, f-strings of plain values. Everything else becomes an `Unknown`, which
is refused when somebody asks for its value.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from denseport.export.errors import CheckpointError

__all__ = ["DUMPED", "TEXT_LIMIT", "Assignments", "Unknown", "settled"]

_DUMP = "mmsegmentation writes one into work_dirs, and python tools/misc/print_config.py FILE prints it."
DUMPED = f"Give the dumped configuration: {_DUMP}"
WRITE_OUT = f"Write the value out in the configuration, or give the dumped configuration: {_DUMP}"
# A dumped configuration has 10,000 characters and 1,000 values. The limits bound the time and memory of a hostile one.
TEXT_LIMIT, SIZE_LIMIT, DEPTH_LIMIT, BITS_LIMIT = 2**20, 200_000, 50, 256
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
# These calls change none of their arguments. Others may, and what they are given is unknown afterwards.
PURE = {"abs", "bool", "dict", "float", "int", "len", "list", "max", "min", "range", "round", "str", "sum", "tuple"}
# With these, any name may get any value.
BOUNDLESS = {"delattr", "eval", "exec", "globals", "locals", "read_base", "setattr", "vars"}
OF_FILES = re.compile(r"\{\{\s*(fileDirname|fileBasename|fileBasenameNoExtension|fileExtname)\s*\}\}")


class Unknown:
    """Stands for a value that only running the configuration would tell; every use of it is a `CheckpointError`."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where  # the line of the configuration; file and number of the line

    def __repr__(self) -> str:
        return f"Unknown({self.text!r})"

    def refuse(self, *_: Any, name: str = "a setting that is needed", **__: Any) -> NoReturn:
        raise CheckpointError(f"{self.where}: {name} is not plain data: {self.text}", WRITE_OUT)

    __eq__ = __hash__ = __bool__ = __str__ = __format__ = __len__ = __iter__ = __contains__ = refuse
    __getitem__ = __int__ = __index__ = __float__ = __lt__ = __gt__ = __add__ = __mul__ = refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own protocols ask whether they are there
            raise AttributeError(name)
        self.refuse()


class _NotData(Exception):
    """An expression that is not data."""


class Assignments:
    """The assignments of one text, evaluated in their order, as Python would.

    Args:
        where: how messages call the text.
        path: of a configuration file, for the names of itself that it may hold.
    """

    def __init__(self, text: str, where: str, path: Path | None = None) -> None:
        self.where, self.path, self.lines = where, path, text.splitlines()
        self.names: dict[str, Any] = {}
        self.budget = SIZE_LIMIT  # characters and items that sums and products may make
        self.changed: dict[int, tuple[Any, Unknown]] = {}  # containers that code may have changed, by id
        if len(text) > TEXT_LIMIT:
            raise CheckpointError(f"{where}: above {TEXT_LIMIT:,} characters, which no configuration has", DUMPED)
        try:
            with warnings.catch_warnings(action="ignore"):  # a path such as 'C:\\data' is an unknown escape
                self.tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
            line = f":{err.lineno}" if isinstance(err, SyntaxError) and err.lineno else ""
            raise CheckpointError(f"{where}{line}: not Python: {str(err) or type(err).__name__}", DUMPED) from err

    def base(self) -> Any:
        """``_base_``, which mmengine evaluates before everything else; None where nothing assigns it."""
        for node in self.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == "_base_":
                return self._value(node.value)
        return None

    def read(self, base: dict[str, Any]) -> dict[str, Any]:
        """The names that the text assigns, and their values; ``_base_`` is what the text made of ``base``."""
        self.names["_base_"] = base
        for node in self.tree.body:
            self._statement(node)
        return settled(self.names, self.where, self.changed)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names != ["_base_"]:
                value = self._value(node.value)
                self.names |= dict.fromkeys(names, value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            self.names[node.target.id] = self._value(node.value)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # but for texts and ...
            self._code(node)

    def _code(self, node: ast.AST) -> None:
        """Statements and calls that only Python could run: what they name is unknown from here on."""
        unknown = self._unknown(node)
        for part in ast.walk(node):
            name = getattr(part, "id", getattr(part, "name", None))
            if isinstance(part, (ast.Import, ast.ImportFrom)):
                new_style = isinstance(part, ast.ImportFrom) and (part.level or any(a.name == "*" for a in part.names))
                if new_style:
                    self._refuse_style(part)
                self.names |= {(a.asname or a.name).split(".")[0]: unknown for a in part.names}
            elif name in BOUNDLESS or name == "_base_" or getattr(part, "attr", None) in BOUNDLESS:
                self._refuse_style(part)
            elif isinstance(name, str) and not isinstance(part, ast.alias):
                self._change(self.names.get(name), unknown)
                if not isinstance(getattr(part, "ctx", None), ast.Load):
                    self.names[name] = unknown

    def _refuse_style(self, node: ast.AST) -> NoReturn:
        unknown = self._unknown(node)
        raise CheckpointError(
            f"{unknown.where}: {unknown.text}: the configuration is made by code (read_base, imports), not by _base_",
            DUMPED,
        )

    def _change(self, value: Any, unknown: Unknown) -> None:
        stack = [value]
        while stack:
            value = stack.pop()
            if isinstance(value, (dict, list, tuple)) and id(value) not in self.changed:
                self.changed[id(value)] = (value, unknown)
                stack.extend(value.values() if isinstance(value, dict) else value)

    def _unknown(self, node: ast.AST) -> Unknown:
        line = getattr(node, "lineno", 1)
        last = min(getattr(node, "end_lineno", None) or line, line + 3)
        text = " ".join(part.strip() for part in self.lines[line - 1 : last])
        return Unknown(text if len(text) <= 80 else text[:79] + "…", f"{self.where}:{line}")

    def _value(self, node: ast.expr) -> Any:
        """The value of an expression, or what stands for it."""
        try:
            return self._evaluate(node)
        except (_NotData, ArithmeticError, LookupError, TypeError, ValueError):
            if any(isinstance(part, ast.NamedExpr) or self._may_change(part) for part in ast.walk(node)):
                self._code(node)
            return self._unknown(node)

    def _may_change(self, node: ast.AST) -> bool:
        """Whether it is a call that may change what it is given."""
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        return isinstance(node, ast.Call) and (name not in PURE or name in self.names)

    def _operand(self, node: ast.expr | None) -> Any:
        """The value of an expression whose value is needed now."""
        value = None if node is None else self._evaluate(node)
        if isinstance(value, Unknown) or id(value) in self.changed:
            raise _NotData
        return value

    def _evaluate(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return self._constant(node.value)
        if isinstance(node, ast.Name):
            if node.id not in self.names:
                raise _NotData
            return self.names[node.id]
        if isinstance(node, ast.List):
            return list(self._items(node.elts))
        if isinstance(node, ast.Tuple):
            return tuple(self._items(node.elts))
        if isinstance(node, (ast.Dict, ast.Call)):
            return self._dict(node)
        if isinstance(node, ast.Set):  # {{_base_.x}}
            inner = node.elts[0]
            if isinstance(inner, ast.Set) and ast.unparse(node).startswith("{{_base_.") and len(inner.elts) == 1:
                return self._evaluate(inner.elts[0])
            raise _NotData
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            return self._part(node)
        if isinstance(node, ast.JoinedStr):
            return self._joined(node)
        return self._number(node)

    def _constant(self, value: Any) -> Any:
        if not isinstance(value, str) or self.path is None:
            return value
        if re.search(r"\{\{\s*['\"]?\s*(\$|_base_)", value):  # the environment, or a base as text
            raise _NotData
        known = {"fileDirname": str(self.path.parent), "fileBasename": self.path.name}
        known |= {"fileBasenameNoExtension": self.path.stem, "fileExtname": self.path.suffix}
        return OF_FILES.sub(lambda found: known[found[1]], value)

    def _items(self, nodes: list[ast.expr]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self._made(list(self._operand(node.value)))
            else:
                yield self._value(node)

    def _dict(self, node: ast.Dict | ast.Call) -> dict[Any, Any]:
        entries: list[tuple[bool, Any, ast.expr]]  # unpacked, key, value
        if isinstance(node, ast.Dict):
            keys = [(key is None, self._operand(key)) for key in node.keys]
            entries = [(*key, value) for key, value in zip(keys, node.values, strict=True)]
        elif isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args and "dict" not in self.names:
            entries = [(keyword.arg is None, keyword.arg, keyword.value) for keyword in node.keywords]
        else:
            raise _NotData
        found: dict[Any, Any] = {}
        for unpacked, key, value in entries:
            more = self._operand(value) if unpacked else {key: self._value(value)}
            if not isinstance(more, dict) or (isinstance(node, ast.Call) and more.keys() & found.keys()):
                raise _NotData
            found |= self._made(more)
        return found

    def _part(self, node: ast.Subscript | ast.Attribute) -> Any:
        """``x[i]``, ``x[i:j]``, and ``_base_.x``, which mmengine allows for the base."""
        whole = self._operand(node.value)
        if isinstance(node, ast.Attribute):
            if not isinstance(whole, dict) or hasattr(dict, node.attr):
                raise _NotData
            return whole[node.attr]
        if not isinstance(node.slice, ast.Slice):
            return whole[self._operand(node.slice)]
        bounds = node.slice
        return self._made(whole[slice(*map(self._operand, (bounds.lower, bounds.upper, bounds.step)))])

    def _joined(self, node: ast.JoinedStr) -> str:
        parts = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and (part.conversion != -1 or part.format_spec is not None):
                raise _NotData
            value = self._operand(part.value if isinstance(part, ast.FormattedValue) else part)
            if not isinstance(value, (str, int, float)) or not self._is_small(value):
                raise _NotData
            parts.append(str(self._made(value)))
        return "".join(parts)

    def _number(self, node: ast.expr) -> Any:
        """Signs, sums, products; ``+`` joins texts and lists, ``*`` repeats lists."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
            value = self._operand(node.operand)
            if not self._is_small(value):
                raise _NotData
            return -value if isinstance(node.op, ast.USub) else +value
        if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATORS:
            raise _NotData
        left, right = self._operand(node.left), self._operand(node.right)
        numbers = all(isinstance(value, (int, float)) and self._is_small(value) for value in (left, right))
        joins = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, (str, list, tuple))
        repeats = isinstance(node.op, ast.Mult) and isinstance(left, (list, tuple)) and isinstance(right, int)
        if repeats:
            self._spend(len(left) * max(right, 0))
        elif joins:
            self._spend(len(left) + len(right))
        elif not numbers:
            raise _NotData
        return OPERATORS[type(node.op)](left, right)

    def _is_small(self, value: Any) -> bool:
        return not isinstance(value, int) or value.bit_length() <= BITS_LIMIT

    def _made(self, value: Any) -> Any:
        self._spend(len(value) if isinstance(value, (str, list, tuple, dict)) else 1)
        return value

    def _spend(self, amount: int) -> None:
        self.budget -= amount
        if self.budget < 0:
            raise CheckpointError(f"{self.where}: makes more than {SIZE_LIMIT:,} values", DUMPED)


def settled(config: dict[str, Any], where: str, changed: Mapping[int, tuple[Any, Unknown]]) -> dict[str, Any]:
    """A copy in which containers that code may have changed (by id) are unknown.

    Raises:
        CheckpointError: it is too large or too deep; what several names share counts for each of them.
    """
    known: dict[int, tuple[Any, int, int]] = {}  # by id: the copy, its number of values, its depth

    def copy(value: Any) -> tuple[Any, int, int]:
        if not isinstance(value, (dict, list, tuple)):
            return value, 1, 0
        if id(value) in changed:
            return changed[id(value)][1], 1, 0
        if id(value) not in known:
            parts = [copy(item) for item in (value.values() if isinstance(value, dict) else value)]
            size, depth = 1 + sum(part[1] for part in parts), 1 + max((part[2] for part in parts), default=0)
            if size > SIZE_LIMIT or depth > DEPTH_LIMIT:
                what = f"more than {SIZE_LIMIT:,} values" if size > SIZE_LIMIT else f"more than {DEPTH_LIMIT} levels"
                raise CheckpointError(f"{where}: {what}, which no configuration has", DUMPED)
            items = [part[0] for part in parts]
            made = dict(zip(value, items, strict=True)) if isinstance(value, dict) else type(value)(items)
            known[id(value)] = made, size, depth
        return known[id(value)]

    made: dict[str, Any] = copy(config)[0]
    return made
