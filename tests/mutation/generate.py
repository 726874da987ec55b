"""Faults that nobody thought of: every comparison, operator, number and statement of a module, one at a time.

`mutate.py --generated` plants them. Many change nothing that could be seen (a fast path taken or not, a value
set before it is read), so its survivors are a list to read, not a score; what was a hole in the tests goes
into `faults/*.txt` with its name. Their order is random but always the same: a part of them is a sample.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from fault import PACKAGE, ROOT, Fault, read_all

_OTHER = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
}


@dataclass(frozen=True, slots=True)
class Generated(Fault):
    """A fault at a place of its own: `old` may stand elsewhere, too.

    Attributes:
        start: where it stands, in bytes of the source.
    """

    start: int = 0

    def plant(self, source: str) -> str:
        """The module's text with the fault in it.

        Raises:
            ValueError: something else stands there.
        """
        text = source.encode()
        end = self.start + len(self.old.encode())
        if text[self.start : end].decode() != self.old:
            raise ValueError(f"{self.path}: {self.name}: the source is another one")
        return (text[: self.start] + self.new.encode() + text[end:]).decode()


def _coarsely(node: ast.AST, members: dict[str, list[str]]) -> Iterator[tuple[ast.AST, str, str]]:
    """What to replace, what is wrong then, and what to write instead: faults that `_instead` is too fine for.

    Args:
        node: where.
        members: of each enumeration, those that the module names.
    """
    match node:
        case ast.If(test) | ast.IfExp(test):
            yield test, "always", "True"
            yield test, "never", "False"
        case ast.While(test):
            yield test, "never", "False"
        case ast.Constant(int(value)) if not isinstance(value, bool) and value > 0:
            yield node, "one less", str(value - 1)
        case ast.Constant(float(value)) if value:
            yield node, "twice as much", str(value * 2)
        case ast.Attribute(ast.Name(kind), name) if name in members.get(kind, ()):
            names = members[kind]
            if len(names) > 1:
                yield node, "another member", f"{kind}.{names[(names.index(name) + 1) % len(names)]}"
        case ast.Return(ast.expr() as value) if not isinstance(value, ast.Constant):
            yield node, "nothing is returned", "return None"


def _members(tree: ast.AST) -> dict[str, list[str]]:
    """The members of enumerations that a module names, which all are written in capitals."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name(kind), name) if kind[:1].isupper() and name.isupper():
                found.setdefault(kind, set()).add(name)
    return {kind: sorted(names) for kind, names in found.items()}


def _instead(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What is wrong, and what to write instead of a node."""
    match node:
        case ast.Compare(left, operators, others):
            for place, operator in enumerate(operators):
                changed = [*operators[:place], _OTHER[type(operator)](), *operators[place + 1 :]]
                yield "another comparison", f"({ast.unparse(ast.Compare(left, changed, others))})"
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield "and for or", f"({ast.unparse(ast.BoolOp(other, values))})"
            for place in range(len(values)):
                rest = [*values[:place], *values[place + 1 :]]
                yield "a condition less", f"({' '.join(ast.unparse(ast.BoolOp(operator, rest)).split())})"
        case ast.UnaryOp(ast.Not(), operand):
            yield "not is left out", f"({ast.unparse(operand)})"
        case ast.BinOp(left, operator, right) if type(operator) in _OTHER:
            yield "another operator", f"({ast.unparse(ast.BinOp(left, _OTHER[type(operator)](), right))})"
        case ast.Constant(bool(value)):
            yield "the other truth", str(not value)
        case ast.Constant(int(value)):
            yield "one more", str(value + 1)
        case ast.Call(ast.Name("min" | "max"), [_, _, *_] as values, []):
            for value in values:
                yield "no bound", f"({ast.unparse(value)})"
        case ast.Assign() | ast.AugAssign() | ast.Expr(ast.Call()) | ast.Continue() | ast.Break():
            yield "left out", "pass"
        case ast.Return(None):
            yield "left out", "pass"


def _nodes(tree: ast.AST, where: str = "") -> Iterator[tuple[str, ast.AST]]:
    """The nodes of functions, each with its function's name.

    None of annotations, asserts, decorators and patterns, nor of f-strings: Python 3.11 misplaces those.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for statement in node.body:
                yield from _nodes(ast.Module([statement], []), f"{where}{node.name}.")
        elif where and not isinstance(node, ast.Assert | ast.AnnAssign | ast.pattern | ast.JoinedStr):
            yield where.rstrip("."), node
            yield from _nodes(node, where)


def generate(path: str, source: str, tests: tuple[str, ...]) -> list[Generated]:
    """Every fault of one module."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line.encode()))
    text = source.encode()
    faults: dict[str, Generated] = {}
    tree = ast.parse(source)
    members = _members(tree)
    for where, node in _nodes(tree):
        planned = [(node, kind, new) for kind, new in _instead(node)]
        for place, kind, new in [*planned, *_coarsely(node, members)]:
            if not isinstance(place, ast.expr | ast.stmt) or place.end_lineno is None:
                continue
            start = lines[place.lineno - 1] + place.col_offset
            old = text[start : lines[place.end_lineno - 1] + (place.end_col_offset or 0)].decode()
            name = f"{where}: {kind}: {' '.join(old.split())} -> {new}"
            while name in faults:
                name += ", again"
            faults[name] = Generated(name, path, old, new, tests, start=start)
    return list(faults.values())


def generate_all() -> list[Generated]:
    """The faults of every module that has a table, tried by the same tests."""
    tests = {fault.path: fault.tests for fault in read_all()}
    found = [
        fault
        for path in sorted(tests)
        for fault in generate(path, (ROOT / PACKAGE / path).read_text(), tests[path])
    ]
    return sorted(found, key=lambda fault: hashlib.sha256(f"{fault.path}{fault.name}".encode()).digest())
