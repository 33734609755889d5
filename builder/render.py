"""Templates: Jinja in a sandbox, from text and values to bytes, and to the same bytes everywhere.

A template stands alone (no include, no import) and sees its values only: no clock, no chance, no environment. An
undefined name is an error, and so is printing what has no text of its own, such as a method. Steps and output are
bounded.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing

from builder.errors import BuilderError

MAX_BYTES = 16 << 20
MAX_STEPS = 1_000_000


class RenderError(BuilderError):
    """A template cannot be rendered; the message begins with its name and line."""


def render(text: str, values: Mapping[str, Any], name: str) -> bytes:
    """The rendered text in UTF-8; `name` is the template's name in errors. Raises `RenderError`."""
    environment = _Environment()
    try:
        tree = environment.prepare(environment.parse(text, name, name), name)
        template = Template.from_code(environment, environment.compile(tree, name, name), environment.globals)
        return _collect(template.generate(values))
    except TemplateSyntaxError as error:
        raise RenderError(f"{name}:{error.lineno}: {error.message}") from error
    except _UndefinedNameError as error:
        raise RenderError(f"{_place(error, name)}: {error.explain(values)}") from error
    except _FAILURES as error:
        raise RenderError(f"{_place(error, name)}: {_reason(error)}") from error


# What evaluating a template can raise; anything else is our bug.
_FAILURES = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


def _collect(pieces: Iterable[str]) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece.encode()
        if len(data) > MAX_BYTES:
            raise SecurityError(_TOO_LARGE)
    return bytes(data)


def _place(error: BaseException, name: str) -> str:
    """`NAME:LINE`, from a traceback, which jinja2 rewrites so that it shows the template's lines."""
    line = 0
    step: TracebackType | None = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == name:
            line = step.tb_lineno
        step = step.tb_next
    return f"{name}:{line}" if line else name


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, UnicodeEncodeError):
        return "not text: half a surrogate pair"
    if isinstance(error, SyntaxError):
        return f"too complicated: {error.msg}"
    return str(error) or type(error).__name__


class _UndefinedNameError(UndefinedError):
    """A name that is not there, and the object in which it was looked for."""

    def __init__(self, message: str, sought: object, owner: object) -> None:
        super().__init__(message)
        self.sought = str(sought)
        self.owner = owner

    def explain(self, values: Mapping[str, Any]) -> str:
        known = values if self.owner is missing else self.owner
        names = [str(name) for name in known] if isinstance(known, Mapping) else []
        if near := difflib.get_close_matches(self.sought[:64], names, 1):
            return f"{self.message} (did you mean {near[0]}?)"
        return f"{self.message} (known here: {', '.join(names[:20])})" if names else str(self.message)


class _Undefined(StrictUndefined):
    """Fails in every use, and says what it was."""

    __slots__ = ()

    def __init__(self, hint: str | None = None, obj: Any = missing, name: Any = None, exc: Any = None) -> None:
        if exc in (None, UndefinedError):
            exc = functools.partial(_UndefinedNameError, sought=name, owner=obj)
        super().__init__(hint, obj, name, exc)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one rendering. It counts steps, which are turns of loops and calls, and measures texts."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # Nothing is folded while compiling: all work is done in rendering, where it is counted.
        super().__init__(undefined=_Undefined, keep_trailing_newline=True, finalize=_printable, optimized=False)
        self._steps = 0
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": Namespace}
        del self.filters["random"]
        for name, check in _FILTERS.items():
            self.filters[name] = _checked(check, self.filters[name])
        self.filters |= {_COUNTED: self._counted, _PRINTABLE: _printable, _MEASURED: _measured}

    def prepare(self, tree: nodes.Template, name: str) -> nodes.Template:
        """Refuses what reaches beyond the template; has loops counted and what is put together measured."""
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            message = "a template stands alone: it cannot include, import or extend another one"
            raise TemplateSyntaxError(message, node.lineno, name)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = self._through(_COUNTED, loop.iter, loop)
        for text in list(tree.find_all(nodes.Concat)):
            text.nodes = [self._through(_MEASURED, self._through(_PRINTABLE, part, text), text) for part in text.nodes]
        for block in list(tree.find_all(nodes.AssignBlock)):
            block.filter = self._through(_MEASURED, block.filter, block)
        return tree

    def _through(self, name: str, node: Any, at: nodes.Node) -> nodes.Filter:
        through = nodes.Filter(node, name, [], [], None, None, lineno=at.lineno)
        through.set_environment(self)
        return through

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls what a template calls."""
        __self._step()
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_width(*args, *kwargs.values())
        return _measured(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, for templates."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_form(getattr(value, "__self__", ""))
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make much of little."""
        if operator == "%":
            _check_form(left)
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        return _measured(super().call_binop(context, operator, left, right))

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise SecurityError(f"more than {MAX_STEPS} steps: does a loop end?")


_TOO_LARGE = f"more than {MAX_BYTES >> 20} MiB of text"
_MAX_WIDTH = 9999
_MAX_BITS = 4096

# Names of filters that no template can write.
_COUNTED, _PRINTABLE, _MEASURED = "counted items", "printable value", "measured value"


def _printable(value: Any) -> Any:
    """The value, if its text is the same everywhere: that of a method or an iterator holds its address."""
    if value is None or isinstance(value, str | int | float | list | tuple | dict | Undefined):
        return value
    advice = (
        "call it with ()" if callable(value) else "turn it into a list or a text, with a filter such as list or join"
    )
    raise TypeError(f"a {type(value).__name__} cannot be printed: {advice}")


def _measured(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > MAX_BYTES:
        raise SecurityError(_TOO_LARGE)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise SecurityError("a number that is too large")
    return value


def _check_product(left: Any, right: Any) -> None:
    for items, times in ((left, right), (right, left)):
        if isinstance(items, str | list | tuple) and isinstance(times, int) and len(items) * times > MAX_BYTES:
            raise SecurityError(_TOO_LARGE)


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_BITS:
        raise SecurityError("a number that is too large")


def _check_width(*values: Any) -> None:
    if any(isinstance(value, int) and value > _MAX_WIDTH for value in values):
        raise SecurityError(f"a width of more than {_MAX_WIDTH}")


def _check_form(form: Any, *_: Any) -> None:
    if isinstance(form, str) and _WIDE_FORM.search(form):
        raise SecurityError(f"a format with a width that is computed or more than {_MAX_WIDTH}")


# A width of five digits or more, or one that is computed: after `%` and flags, or after the colon of a `{}` field.
_WIDE_FORM = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*(?:\d{5}|\*)|\{[^{}]*:[^{}]*(?:\d{5}|\{)")


def _checked(check: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with a check of its arguments; jinja2's marks on the function stay."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, *kwargs.values())
        return _measured(function(*args, **kwargs))

    return checked


def _check_arguments(_value: Any, *arguments: Any) -> None:
    _check_width(*arguments)


def _check_json(_context: Any, _value: Any, indent: Any = None) -> None:
    _check_width(indent)


_FILTERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("batch", "center", "indent", "round", "slice"), _check_arguments),
    "format": _check_form,
    "string": _printable,
    "tojson": _check_json,
}
"""What is checked of the arguments of filters."""
