"""Where a module can be mutated: one small change of its syntax tree each, as a slip of the pen would make it.

Left out is what no picture can depend on: imports, annotations, decorators, docstrings, assertions, what an error says,
and the fields of a row that only tell (`TELLING`).
"""

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

TELLING = {"why", "quirks", "title", "source", "about"}
"""Fields of a row that are there to be read by people."""
TYPES = {
    "Annotated",
    "Callable",
    "Literal",
    "Mapping",
    "NewType",
    "Sequence",
    "TypeVar",
    "Union",
    "cast",
    "dict",
    "tuple",
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One place and one change there."""

    number: int
    """Which one of its module's, in the order of the source."""
    kind: str
    before: str
    after: str
    line: int
    lines: tuple[int, int]
    """First and last line of what is changed: a test that reaches none of them cannot notice."""
    statement: tuple[int, int]
    """Those of the statement around it, for an interpreter that counts a constant to another line."""
    where: str
    """Function or name that it lies in."""
    row: str
    """Id of the model whose row it lies in; empty elsewhere."""
    nth: int
    """Of the same changes in the same function, from 1."""

    @property
    def key(self) -> str:
        """Names it without line numbers, which move."""
        again = f" ({self.nth})" if self.nth > 1 else ""
        return f"{self.where or 'module'}: {self.before} -> {self.after}{again}"


def points(source: str) -> list[Point]:
    """All mutants of a module, in the order of its source."""
    return [point for point, _ in _Walk(ast.parse(source)).found]


def mutated(source: str, number: int) -> ast.Module:
    """The module's tree with mutant `number` of `points(source)` in it."""
    tree = ast.parse(source)
    _, change = _Walk(tree).found[number]
    change()
    return ast.fix_missing_locations(tree)


Change = Callable[[], None]


class _Walk:
    """Finds the mutants of a tree, and how to make each of them in it."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[tuple[Point, Change]] = []
        self._statement: ast.stmt | None = None
        self._where: list[str] = []
        self._row = ""
        self._times: Counter[tuple[str, str, str]] = Counter()
        self._body(tree.body, set())

    # ------------------------------------------------------------------------------------------------- statements

    def _body(self, body: list[ast.stmt], bound: set[str]) -> None:
        """`bound`: names that have a value before, so that a later assignment to them can be missing unnoticed."""
        for index, statement in enumerate(body):
            outer, self._statement = self._statement, statement
            if self._removable(statement, bound):
                self._add("statement removed", statement, "pass", _put(body, index, ast.Pass()))
            self._visit_statement(statement, bound)
            bound |= _assigned(statement)
            self._statement = outer

    @staticmethod
    def _removable(statement: ast.stmt, bound: set[str]) -> bool:
        """Without it, the rest still has all of its names."""
        if isinstance(statement, ast.Expr):
            return isinstance(statement.value, ast.Call | ast.Await)
        if isinstance(statement, ast.Assign):
            return all(not isinstance(t, ast.Name) or t.id in bound for t in statement.targets)
        return isinstance(statement, ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete)

    def _visit_statement(self, statement: ast.stmt, bound: set[str]) -> None:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Global() | ast.Nonlocal() | ast.Raise():
                return
            case ast.Expr(value=ast.Constant()):
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names = {a.arg for a in ast.walk(statement.args) if isinstance(a, ast.arg)}
                self._inside(statement.name, lambda: self._defaults(statement.args))
                self._inside(statement.name, lambda: self._body(statement.body, names))
            case ast.ClassDef():
                self._inside(statement.name, lambda: self._body(statement.body, set()))
            case ast.Assign() | ast.AnnAssign():
                if statement.value is None or _tells_a_type(statement):
                    return
                target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
                name = target.id if isinstance(target, ast.Name) and not self._where else ""
                self._inside(name, lambda: self._field(statement, "value"))
            case ast.If() if "TYPE_CHECKING" in ast.unparse(statement.test):
                return
            case ast.If():
                self._add("branch deleted", statement.test, "False", _put(statement, "test", ast.Constant(False)))
                if statement.orelse:
                    self._add("branch deleted", statement.test, "True", _put(statement, "test", ast.Constant(True)))
                self._negated(statement)
                self._field(statement, "test")
                self._body(statement.body, set(bound))
                self._body(statement.orelse, set(bound))
            case ast.While():
                self._field(statement, "test")
                self._body(statement.body, set(bound))
            case ast.For():
                self._field(statement, "iter")
                self._body(statement.body, bound | _assigned(statement))
            case ast.With():
                for item in statement.items:
                    self._field(item, "context_expr")
                self._body(statement.body, bound)
            case ast.Try():
                for body in (statement.body, statement.orelse, statement.finalbody):
                    self._body(body, set(bound))
                for handler in statement.handlers:
                    self._body(handler.body, set(bound))
            case _:
                for name in ("value", "target"):
                    if isinstance(getattr(statement, name, None), ast.expr):
                        self._field(statement, name)

    def _inside(self, name: str, visit: Callable[[], None]) -> None:
        if name:
            self._where.append(name)
        visit()
        if name:
            self._where.pop()

    def _defaults(self, args: ast.arguments) -> None:
        for holder in (args.defaults, args.kw_defaults):
            self._items(holder)

    # ------------------------------------------------------------------------------------------------ expressions

    def _field(self, parent: ast.AST, name: str) -> None:
        self._expression(getattr(parent, name), parent, name)

    def _items(self, items: Sequence[ast.expr | None]) -> None:
        for index, item in enumerate(items):
            if item is not None:
                self._expression(item, items, index)

    def _expression(self, node: ast.expr, parent: Any, at: Any) -> None:
        match node:
            case ast.Constant():
                for kind, value in _other_constants(node.value):
                    self._add(kind, node, repr(value), _put(parent, at, ast.Constant(value)))
                return
            case ast.Compare():
                for index, operator in enumerate(node.ops):
                    other = COMPARISONS[type(operator)]()
                    ops = [*node.ops[:index], other, *node.ops[index + 1 :]]
                    changed = ast.Compare(node.left, ops, node.comparators)
                    self._add("comparison", node, changed, _put(node.ops, index, other))
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                sign = ARITHMETIC[type(node.op)]()
                self._add("arithmetic", node, ast.BinOp(node.left, sign, node.right), _put(node, "op", sign))
            case ast.BoolOp():
                word = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
                self._add("boolean", node, ast.BoolOp(word, node.values), _put(node, "op", word))
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                kind = "not" if isinstance(node.op, ast.Not) else "sign"
                self._add(kind, node, node.operand, _put(parent, at, node.operand))
            case ast.IfExp():
                swapped = ast.IfExp(node.test, node.orelse, node.body)
                self._add("branch deleted", node, node.body, _put(parent, at, node.body))
                self._add("branch deleted", node, node.orelse, _put(parent, at, node.orelse))
                self._add("not", node, swapped, _put(parent, at, swapped))
            case ast.Call():
                self._call(node)
                return
            case ast.Slice():
                for name in ("lower", "upper", "step"):
                    if getattr(node, name) is not None:
                        shorter = copy.copy(node)
                        setattr(shorter, name, None)
                        self._add("slice", node, shorter, _put(node, name, None))
            case ast.Lambda():
                self._defaults(node.args)
                self._field(node, "body")
                return
        self._children(node)

    def _children(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "format_spec"):
                continue
            if isinstance(value, ast.expr):
                self._expression(value, node, name)
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, ast.expr):
                        self._expression(item, value, index)
                    elif isinstance(item, ast.comprehension):
                        self._children(item)

    def _call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        if name.endswith("Error") or name in {"warn", "warning", "TypeVar", "NewType", "cast", "fail"}:
            return
        outer = self._row
        ids = (k.value for k in node.keywords if k.arg == "id")
        self._row = next((str(i.value) for i in ids if isinstance(i, ast.Constant)), self._row)
        for index, keyword in enumerate(node.keywords):
            if keyword.arg in TELLING:
                continue
            said = f"{keyword.arg}={ast.unparse(keyword.value)}" if keyword.arg else ast.unparse(keyword.value)
            self._add("argument removed", keyword, f"{called}(without it)", _drop(node.keywords, index), before=said)
            self._field(keyword, "value")
        if (
            len(node.args) > 1
            and not isinstance(node.args[0], ast.Starred)
            and not isinstance(node.args[1], ast.Starred)
        ):
            first, second = node.args[:2]
            if ast.dump(first) != ast.dump(second) and name not in {"isinstance", "hasattr", "getattr", "setattr"}:
                swapped = ast.Call(node.func, [second, first, *node.args[2:]], node.keywords)
                self._add("arguments swapped", node, swapped, _put(node, "args", swapped.args))
        self._field(node, "func")
        self._items(node.args)
        self._row = outer

    def _negated(self, statement: ast.If) -> None:
        negated = ast.UnaryOp(ast.Not(), statement.test)
        self._add("not", statement.test, negated, _put(statement, "test", negated))

    def _add(self, kind: str, node: Any, after: ast.AST | str, change: Change, before: str = "") -> None:
        around = self._statement
        assert around is not None
        before = _short(before or ast.unparse(node))
        said = after if isinstance(after, str) else ast.unparse(ast.fix_missing_locations(copy.deepcopy(after)))
        what = (".".join(self._where), before, _short(said))
        self._times[what] += 1
        where, before, said = what
        point = Point(
            number=len(self.found),
            kind=kind,
            before=before,
            after=said,
            line=node.lineno,
            lines=(node.lineno, node.end_lineno),
            statement=(around.lineno, around.end_lineno or around.lineno),
            where=where,
            row=self._row,
            nth=self._times[what],
        )
        self.found.append((point, change))


def _put(parent: Any, at: Any, new: Any) -> Change:
    """A field of a node, or an item of a list, replaced."""

    def change() -> None:
        if isinstance(at, str):
            setattr(parent, at, new)
        else:
            parent[at] = new

    return change


def _drop(items: list[Any], index: int) -> Change:
    def change() -> None:
        del items[index]

    return change


def _assigned(statement: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _tells_a_type(statement: ast.Assign | ast.AnnAssign) -> bool:
    """`__all__`, and names for types: `Shapes = Mapping[str, ...]`."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    if isinstance(target, ast.Name) and target.id == "__all__":
        return True
    value = statement.value
    while isinstance(value, ast.BinOp):  # int | None
        value = value.left
    head = value.value if isinstance(value, ast.Subscript) else value.func if isinstance(value, ast.Call) else None
    return isinstance(head, ast.Name) and head.id in TYPES - {"dict", "tuple", "cast"} | (
        {"dict", "tuple"} if isinstance(value, ast.Subscript) else set()
    )


def _other_constants(value: object) -> Iterator[tuple[str, Any]]:
    match value:
        case bool():
            yield "constant", not value
        case int() | float():
            yield "constant", value + 1
            if isinstance(value, int):
                yield "constant", value - 1
            elif value:
                yield "sign", -value
        case str() if len(value.split()) < 6:  # a sentence is there to be read
            yield "string", "" if value else "x"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:85]} ... {text[-30:]}"
