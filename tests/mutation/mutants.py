"""Single faults that can be put into a module: one operator, number, slice or word changed."""

import ast
from typing import NamedTuple

__all__ = ["Mutant", "mutants_of"]

#: What stands for an operator or a name.
_OPERATORS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_WORDS = {
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "any": "all",
    "all": "any",
    "sum": "mean",
    "mean": "sum",
    "exp": "expm1",
    "log_softmax": "softmax",
    "argmax": "argmin",
    "sorted": "list",
    "append": "insert",
    "floor": "ceil",
    "ceil": "floor",
    "startswith": "endswith",
    "endswith": "startswith",
}

#: Characters of what is shown with what is around it.
_SHORT = 12


class Mutant(NamedTuple):
    """One fault.

    Args:
        module: Name of the module.
        place: Function or class it lies in, ``Class.function``; empty for the module itself.
        lines: Lines of the source that are reached where it matters: those of its statement.
        is_within: Whether it lies in a function.
        change: What stood there and what stands there now; of a short word also what is around it.
        path: The way to it from the top of the tree: fields, and places in lists.
        variant: Which of the faults that can be made there.
    """

    module: str
    place: str
    lines: range
    is_within: bool
    change: str
    path: tuple[tuple[str, int | None], ...]
    variant: int

    @property
    def name(self) -> str:
        """What it is called in lists; lines may move."""
        return f"{self.module}:{self.place}: {self.change}"

    def tree(self, source: str) -> ast.Module:
        """Return the changed module."""
        tree = ast.parse(source)
        holder, node = tree, tree
        for field, index in self.path:
            holder, node = node, getattr(node, field)
            node = node if index is None else node[index]
        new = list(_faults(node))[self.variant]
        field, index = self.path[-1]
        if index is None:
            setattr(holder, field, new)
        else:
            getattr(holder, field)[index] = new
        return ast.fix_missing_locations(tree)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Return all faults of a module."""
    return [
        Mutant(module, place, lines, is_within, _change(node, new, around), path, variant)
        for node, path, place, lines, is_within, around in _sites(ast.parse(source))
        for variant, new in enumerate(_faults(node))
    ]


def _sites(tree):
    """Yield the way to every expression and statement, and where it lies."""
    todo = [(tree, (), "", False, range(0))]
    while todo:
        node, path, place, is_within, lines = todo.pop(0)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases"):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or _is_left_alone(child):
                    continue
                way = (*path, (field, index))
                inner = place
                # What lies in a function belongs to it, functions too.
                if isinstance(child, ast.FunctionDef | ast.ClassDef) and not is_within:
                    inner = f"{place}.{child.name}".lstrip(".")
                own = _lines(child, lines)
                if isinstance(child, ast.expr | ast.Return | ast.Assign | ast.AugAssign | ast.Expr):
                    yield child, way, place, own, is_within, node
                is_function = isinstance(child, ast.FunctionDef | ast.Lambda)
                todo.append((child, way, inner, is_within or is_function, own))


def _lines(node, around) -> range:
    """Return a statement's lines, of one with others in it those of its head."""
    if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
        first = getattr(node, "lineno", None) or node.pattern.lineno
        is_whole = isinstance(node, ast.FunctionDef) or not hasattr(node, "body")
        return range(first, node.end_lineno + 1 if is_whole else node.body[0].lineno)
    return around


def _is_left_alone(node) -> bool:
    """Tell whether a fault in there would say nothing: imports, names, messages, assertions.

    ``zip(..., strict=True)`` is an assertion, too.
    """
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert):
        return True
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    if isinstance(node, ast.Assign):
        return any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _change(node, new, around) -> str:
    """Return what was made of a node; of a short one, which may stand there twice, also where."""
    change = f"{_shown(node)} -> {_shown(new)}"
    if len(_shown(node)) > _SHORT or not isinstance(around, ast.expr | ast.keyword | ast.stmt):
        return change
    return f"{change} in {_shown(around)}"


def _shown(node) -> str:
    return " ".join(ast.unparse(node).split())[:90]


def _faults(node):
    match node:
        case ast.Compare(ops=[one]) if type(one) in _OPERATORS:
            yield ast.Compare(node.left, [_OPERATORS[type(one)]()], node.comparators)
            if isinstance(one, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
                yield ast.Compare(node.comparators[0], node.ops, [node.left])
        case ast.BinOp(op=one) if type(one) in _OPERATORS:
            if not isinstance(node.left, ast.JoinedStr | ast.List | ast.Tuple):
                yield ast.BinOp(node.left, _OPERATORS[type(one)](), node.right)
        case ast.BoolOp(op=one):
            yield ast.BoolOp(_OPERATORS[type(one)](), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
            if value:
                yield ast.Constant(value / 2 if isinstance(value, float) else value - 1)
        case ast.Slice():
            if node.lower is not None:
                yield ast.Slice(None, node.upper, node.step)
            if node.upper is not None:
                yield ast.Slice(node.lower, None, node.step)
        case ast.Attribute(attr=name) if name in _WORDS:
            yield ast.Attribute(node.value, _WORDS[name], node.ctx)
        case ast.Attribute(attr="detach"):
            pass
        case ast.Name(id=name, ctx=ast.Load()) if name in _WORDS:
            yield ast.Name(_WORDS[name], ast.Load())
        case ast.Call():
            yield from _faults_of_call(node)
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            pair = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == 2 else ()
            if len({*map(ast.dump, pair)}) == 2:
                yield ast.Return(ast.Tuple(value.elts[::-1], ast.Load()))
        case ast.AugAssign(op=one) if type(one) in _OPERATORS:
            yield ast.AugAssign(node.target, _OPERATORS[type(one)](), node.value)


#: Functions whose arguments may change places.
_ALIKE = (
    "min",
    "max",
    "minimum",
    "maximum",
    "logaddexp",
    "promote_types",
    "vecdot",
    "array_equal",
    "zip",
    "range",
)


def _faults_of_call(node):
    alike = getattr(node.func, "id", getattr(node.func, "attr", "")) in _ALIKE
    starred = any(isinstance(one, ast.Starred) for one in node.args)
    if len({*map(ast.dump, node.args)}) == 2 == len(node.args) and not alike and not starred:
        yield ast.Call(node.func, node.args[::-1], node.keywords)
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("detach", "clamp", "float"):
        yield node.func.value
    if node.keywords and node.keywords[-1].arg not in (None, "strict"):
        yield ast.Call(node.func, node.args, node.keywords[:-1])
