"""A jinja2 environment for templates nobody has read: they come from model files.

Beyond jinja2's own sandbox (no attributes of Python's internals, nothing mutable), work is metered: loop iterations,
calls, and the length of every text or list that is made or read cost units of a budget, so that a template can't
hang the server or fill its memory. Filters and methods are those that chat templates use.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 5.0
_LOOP_UNITS = 100
_ITEM_UNITS = 16
_MAX_ARGUMENT = 10_000
_MAX_INTEGER_BITS = 4096

_FILTERS = (  # noqa: SIM905
    "abs batch capitalize count d default dictsort e escape first float forceescape groupby indent int items join "
    "last length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort "
    "string sum title trim unique upper"
).split()
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find index isalnum isalpha isdigit islower isnumeric isspace isupper "  # noqa: SIM905
        "join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
        "splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}
# A width or precision of four digits, or one taken from an argument.
_WIDE_FORMAT = re.compile(r"\d{4}|%[^%a-zA-Z]*\*|\{[^}]*\{")


class _Budget:
    __slots__ = ("deadline", "units")

    def __init__(self, units: int) -> None:
        self.units = units
        self.deadline = time.monotonic() + MAX_SECONDS


_budget: ContextVar[_Budget] = ContextVar("chat_template_budget")


@contextmanager
def metered(units: int) -> Iterator[None]:
    """Compile or render within `units` of work and `MAX_SECONDS`."""
    token = _budget.set(_Budget(units))
    try:
        yield
    finally:
        _budget.reset(token)


def _charge(units: int) -> None:
    budget = _budget.get()
    budget.units -= units
    if budget.units < 0 or time.monotonic() > budget.deadline:
        raise jinja2.exceptions.SecurityError("the template does too much work")


def _refuse(what: str) -> NoReturn:
    raise jinja2.exceptions.SecurityError(f"{what} is not available in chat templates")


def _weigh(value: object) -> None:
    """Charge for the text that `value` would make; nested containers count each time they are reached."""
    pending = [value]
    while pending:
        item = pending.pop()
        _charge(_ITEM_UNITS + (len(item) if isinstance(item, str | range) else 0))
        if isinstance(item, Mapping):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)


def _check_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Charge for a filter or method by its arguments (the text it works on comes first)."""
    values = (*args, *kwargs.values())
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_ARGUMENT and name not in ("abs", "float", "int", "string"):
            _refuse(f"{name} with the number {value}")
        _weigh(value)
    texts = [value for value in values if isinstance(value, str)]
    if name == "replace" and len(texts) >= 3:
        _charge((len(texts[0]) if not texts[1] else texts[0].count(texts[1])) * len(texts[2]))
    elif name == "join" and texts:
        _charge(max(map(len, texts)) * max((len(v) for v in values if isinstance(v, list | tuple)), default=1))
    elif name == "indent" and texts:
        widths = [int(value) for value in values if isinstance(value, int)] + [len(text) for text in texts[1:]]
        _charge((texts[0].count("\n") + 1) * max([4, *widths]))


def _check_format(pattern: str, values: object) -> None:
    if _WIDE_FORMAT.search(pattern):
        _refuse(f"the format {pattern!r}")
    _weigh(values)


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        head, values = args[:passed], args[passed:]
        # An iterator could hide any number of references to one long text.
        values = tuple(list(value) if isinstance(value, Iterator) else value for value in values)
        _check_call(name, values, kwargs)
        return function(*head, *values, **kwargs)

    return run


class _Meter(NodeTransformer):
    """Puts charges where compiled templates would otherwise work without a call to the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._charge_body(node, _LOOP_UNITS)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._charge_body(node, 1)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._charge_body(node, 1)

    def _charge_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock, units: int) -> nodes.Node:
        units += sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        charge = _call(node, "charge", [nodes.Const(units)])
        node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(node, "concat", list(node.nodes))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [end or nodes.Const(None) for end in (node.arg.start, node.arg.stop, node.arg.step)]
        return _call(node, "cut", [node.node, *ends])


def _call(node: nodes.Node, name: str, args: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; training needs the marks, rendering doesn't."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Renders chat templates as transformers' `apply_chat_template` does, within a budget (see `metered`)."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self._finalize
        )
        self.filters = {name: _metered_filter(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = _metered_filter("tojson", _to_json)
        self.globals = {
            "range": self.globals["range"],
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "namespace": self.globals["namespace"],
            "dict": _make_dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        metered_tree = _Meter().visit(tree)
        assert isinstance(metered_tree, nodes.Template)
        return metered_tree

    @staticmethod
    def _finalize(value: object) -> object:
        _weigh(value)
        return value

    def charge(self, units: int) -> str:
        """Called by compiled templates."""
        _charge(units)
        return ""

    def concat(self, *parts: object) -> str:
        """`a ~ b`, called by compiled templates."""
        _weigh(parts)
        return "".join(map(str, parts))

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`, called by compiled templates."""
        if isinstance(value, str | list | tuple):
            _charge(1 + len(value))
        return value[start:stop:step]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make something large out of something small."""
        for side in (left, right):
            if isinstance(side, str | list | tuple):
                _charge(1 + len(side) * (max(_count(left), _count(right)) if operator == "*" else 1))
        if operator == "**":
            if not isinstance(right, int) or _bits(left) * abs(right) > _MAX_INTEGER_BITS:
                _refuse(f"{left} ** {right}")
        elif operator == "*" and _bits(left) + _bits(right) > _MAX_INTEGER_BITS:
            _refuse("a product of this size")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, kept from making wide fields."""
        safe_format = super().wrap_str_format(value)
        if safe_format is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, [args, kwargs])
            return safe_format(*args, **kwargs)

        return checked

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call made by the template."""
        _charge(1)
        if isinstance(__obj, BuiltinMethodType) and not isinstance(__obj.__self__, ChatEnvironment):
            owner, name = __obj.__self__, __obj.__name__
            allowed = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), frozenset())
            if name not in allowed:
                _refuse(f"{type(owner).__name__}.{name}")
            args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
            _check_call(name, (owner, *args), kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 1


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    _check_format(pattern, ())
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: jinja2's own filter escapes HTML."""
    if isinstance(value, Undefined):
        raise jinja2.exceptions.UndefinedError("tojson of an undefined value")
    if indent is not None and indent > 16:
        _refuse(f"tojson with an indent of {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render_limited(chunks: Iterable[str], max_chars: int) -> str:
    """Join the chunks of a rendering; SecurityError once they are longer than `max_chars`."""
    parts, total = [], 0
    for chunk in chunks:
        total += len(chunk)
        if total > max_chars:
            raise jinja2.exceptions.SecurityError(f"the template writes more than {max_chars} characters")
        parts.append(chunk)
    return "".join(parts)
