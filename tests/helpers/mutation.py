"""Plausible faults of Python code: small changes of one expression. Read by scripts/hardening/mutants."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
_NAMES = {"min": "max", "minimum": "maximum", "any": "all", "floor": "ceil", "argmin": "argmax", "zeros": "ones"}
_NAMES |= {value: key for key, value in _NAMES.items()}


@dataclass(frozen=True)
class Mutant:
    """One fault: the text between two places of a module becomes another."""

    module: str  # path in the repository
    number: int  # of the line where it starts, from 1
    line: str  # that line without its indentation, and
    becomes: str  # the same with the fault
    start: int  # characters from the module's beginning
    stop: int
    text: str

    def applied_to(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.module}:{self.number}: {self.line}  =>  {self.becomes}"


def mutants_of(root: Path, module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    source = (root / module).read_text()
    lines = source.splitlines(keepends=True)
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))

    def place(number: int, column: int) -> int:  # ast counts columns in UTF-8 bytes
        return begins[number - 1] + len(lines[number - 1].encode()[:column].decode())

    found = []
    for node, changed in _changes(ast.parse(source)):
        start, stop = place(node.lineno, node.col_offset), place(node.end_lineno or 0, node.end_col_offset or 0)
        text = ast.unparse(ast.fix_missing_locations(changed))
        if isinstance(node, ast.expr):
            text = f"({text})" if isinstance(changed, (ast.BoolOp, ast.Compare, ast.BinOp, ast.UnaryOp)) else text
        head, end = begins[node.lineno - 1], begins[node.end_lineno or 0]
        line, becomes = source[head:end], source[head:start] + text + source[stop:end]
        found.append(Mutant(module, node.lineno, " ".join(line.split()), " ".join(becomes.split()), start, stop, text))
    return found


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """Each place and what stands there instead; not in annotations, messages, raises, `__all__`, assert and strict."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)) or _is_all(node) or _is_strict(node):
            continue
        if isinstance(node, (ast.expr, ast.stmt)):
            for changed in _faults(node):
                yield node, changed
        kept = [
            child
            for name, field in ast.iter_fields(node)
            if name not in ("annotation", "returns", "decorator_list", "type_params")
            for child in (field if isinstance(field, list) else [field])
            if isinstance(child, ast.AST)
        ]
        stack.extend(reversed(kept))


def _is_all(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"


def _is_strict(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _faults(node: ast.expr | ast.stmt) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[op]):
            for other in _COMPARE[type(op)]:
                yield _with(node, ops=[other()])
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for i in range(len(node.values)):
                kept = node.values[:i] + node.values[i + 1 :]
                yield kept[0] if len(kept) == 1 else _with(node, values=kept)
        case ast.BinOp() if type(node.op) in _ARITHMETIC and not _is_text(node):
            yield _with(node, op=_ARITHMETIC[type(node.op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield node.operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
            if value > 0:
                yield ast.Constant(value - 1)
        case ast.Constant(value=float() as value):
            yield ast.Constant(value / 2 if value else 1.0)
        case ast.Name(id=name) if name in _NAMES:
            yield _with(node, id=_NAMES[name])
        case ast.Attribute(attr=name) if name in _NAMES:
            yield _with(node, attr=_NAMES[name])
        case ast.Slice(lower=ast.expr(), upper=_):
            yield _with(node, lower=None)
        case ast.Slice(lower=None, upper=ast.expr()):
            yield _with(node, upper=None)
        case ast.If(body=[ast.Raise() | ast.Return() | ast.Continue() | ast.Break()], orelse=[]):
            yield ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.AugAssign() if type(node.op) in _ARITHMETIC:
            yield _with(node, op=_ARITHMETIC[type(node.op)]())


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(isinstance(s, (ast.JoinedStr, ast.Constant)) and not _is_number(s) for s in sides)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
