"""The part of Go's text/template that people use with `weave report -f`: filling a template from a report.

A template runs inside the router, so what it may cost is bounded: steps, output, widths. Source: CLI spec §6.3;
Go's text/template documentation.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weave_py.report import MAPS, OPTIONAL, to_json
from weave_py.template import COMPARISONS, Branch, Call, Literal, Node, Operand, Output, Path, Pipe, read

_MAX_STEPS = 300_000
_MAX_OUTPUT = 16 << 20
_MAX_WIDTH = 1000
_VERB = re.compile(r"%([-+ 0#]*)(\d*)(?:\.(\d*))?(.?)", re.DOTALL)


class ExecutionError(Exception):
    """The template can be read, but not filled from this report."""


def render(template: str, report: Mapping[str, Any]) -> str:
    """Fill a template. Raises TemplateError or ExecutionError."""
    filling = _Filling(report)
    filling.nodes(read(template), report)
    return "".join(filling.output)


class _Filling:
    """One template being filled."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.output: list[str] = []
        self._root = root
        self._variables: list[tuple[str, Any]] = [("$", root)]
        self._steps = 0
        self._size = 0

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ExecutionError(f"the template takes more than {_MAX_STEPS} steps")

    def _write(self, text: str) -> None:
        self._size += len(text)
        if self._size > _MAX_OUTPUT:
            raise ExecutionError(f"the output is larger than {_MAX_OUTPUT} characters")
        self.output.append(text)

    def nodes(self, nodes: Sequence[Node], dot: Any) -> None:
        """Fill these parts; variables that they declare end with them."""
        depth = len(self._variables)
        for node in nodes:
            self._step()
            if isinstance(node, str):
                self._write(node)
            elif isinstance(node, Output):
                value = self._pipe(node.pipe, dot)
                if node.pipe.variables:
                    self._assign(node.pipe, (value,))
                else:
                    self._write(shown(value))
            else:
                self._branch(node, dot)
        del self._variables[depth:]

    def _assign(self, pipe: Pipe, values: tuple[Any, ...]) -> None:
        for name, value in zip(pipe.variables, values, strict=False):
            if pipe.declares:
                self._variables.append((name, value))
            else:
                place = max(place for place, (known, _) in enumerate(self._variables) if known == name)
                self._variables[place] = (name, value)

    def _branch(self, branch: Branch, dot: Any) -> None:
        depth = len(self._variables)
        value = self._pipe(branch.pipe, dot)
        if branch.kind == "range":
            self._range(branch, value, dot)
        else:
            self._assign(branch.pipe, (value,))
            inner = value if branch.kind == "with" and value else dot
            self.nodes(branch.body if value else branch.otherwise, inner)
        del self._variables[depth:]

    def _range(self, branch: Branch, value: Any, dot: Any) -> None:
        if value is not None and not isinstance(value, Mapping | list | tuple):
            raise ExecutionError(f"range can't iterate over {shown(value)}")
        if not value:
            self.nodes(branch.otherwise, dot)
            return
        pairs: Iterable[tuple[Any, Any]] = sorted(value.items()) if isinstance(value, Mapping) else enumerate(value)
        with_keys = len(branch.pipe.variables) > 1
        depth = len(self._variables)
        for key, item in pairs:
            self._step()
            self._assign(branch.pipe, (key, item) if with_keys else (item,))
            self.nodes(branch.body, item)
            del self._variables[depth:]

    # --- values ---

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = None
        for number, command in enumerate(pipe.commands):
            value = self._value(command, dot, (value,) if number else ())
        return value

    def _value(self, operand: Operand, dot: Any, piped: tuple[Any, ...] = ()) -> Any:
        self._step()
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Path):
            return self._path(operand, dot)
        if not operand.function:
            raise ExecutionError("can't give argument to non-function")
        if operand.function in ("and", "or"):
            return self._either(operand, dot, piped)
        return call(operand.function, [*(self._value(inner, dot) for inner in operand.operands), *piped])

    def _either(self, operand: Call, dot: Any, piped: tuple[Any, ...]) -> Any:
        """`and`, `or`: the first operand that decides, those behind it are not looked at."""
        value: Any = None
        if not operand.operands and not piped:
            raise ExecutionError(f"wrong number of args for {operand.function}")
        for inner in operand.operands:
            value = self._value(inner, dot)
            if bool(value) == (operand.function == "or"):
                return value
        return piped[0] if piped else value

    def _path(self, path: Path, dot: Any) -> Any:
        if path.pipe is not None:
            value = self._pipe(path.pipe, dot)
        elif path.variable is None:
            value = dot
        else:
            # A range's variables do not exist in its `else`.
            value = next((value for name, value in reversed(self._variables) if name == path.variable), None)
        open_ended = False
        for name in path.fields:
            if isinstance(value, Mapping) and name in value:
                value = value[name]
            elif open_ended or (value is self._root and name in OPTIONAL):
                value = None
            else:
                raise ExecutionError(f"can't evaluate field {name}")
            open_ended = name in MAPS
        return value


# --- functions ---


def call(name: str, arguments: list[Any]) -> Any:
    """One function of these arguments. Raises ExecutionError."""
    try:
        if name in COMPARISONS:
            return _compare(name, *arguments)
        match name:
            case "not":
                (value,) = arguments
                return not value
            case "len":
                (value,) = arguments
                return len(value if value is not None else ())
            case "index":
                return _index(*arguments)
            case "printf":
                return _printf(str(arguments[0]), arguments[1:])
            case "print":
                return "".join(map(shown, arguments))
            case "println":
                return " ".join(map(shown, arguments)) + "\n"
        (value,) = arguments
        return to_json(value, indent=False)
    except (LookupError, TypeError, ValueError) as error:
        raise ExecutionError(f"error calling {name}: {error}") from error


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            if not isinstance(key, str):
                raise TypeError(f"cannot index by {shown(key)}")
            value = value.get(key)
        elif isinstance(key, bool) or not isinstance(key, int) or key < 0:
            raise LookupError(f"index out of range: {shown(key)}")
        else:
            value = value[key]
    return value


def _kind(value: Any) -> type:
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind
    raise TypeError("non-comparable type")


def _compare(name: str, first: Any, *others: Any) -> bool:
    if not others or (len(others) > 1 and name != "eq"):
        raise TypeError("wrong number of args")
    if any(_kind(other) is not _kind(first) for other in others):
        raise TypeError("incompatible types for comparison")
    other = others[0]
    match name:
        case "eq":
            return first in others
        case "ne":
            return bool(first != other)
        case _ if isinstance(first, bool):
            raise TypeError("invalid type for comparison")
        case "lt":
            return bool(first < other)
        case "le":
            return bool(first <= other)
        case "gt":
            return bool(first > other)
    return bool(first >= other)


def _printf(pattern: str, arguments: list[Any]) -> str:
    """Go's verbs v, s, q, d, x, t, f and e; too few or too many operands are shown as Go shows them."""
    rest = list(arguments)

    def one(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        if int(width or 0) > _MAX_WIDTH or int(precision or 0) > _MAX_WIDTH:
            raise ValueError(f"a width is at most {_MAX_WIDTH}")
        value = rest.pop(0)
        point = "" if precision is None else f".{precision}"
        if verb in "vst":
            # Padding with zeros is for numbers.
            flags = flags if isinstance(value, int | float) else flags.replace("0", "")
            return f"%{flags}{width}{point}s" % shown(value)
        if verb == "q":
            return f"%{flags}{width}s" % to_json(value, indent=False)
        if verb in "dxXfeEg":
            return str(f"%{flags}{width}{point}{verb}" % value)
        return f"%!{verb}({shown(value)})"

    text = _VERB.sub(one, pattern)
    return text + (f"%!(EXTRA {', '.join(map(shown, rest))})" if rest else "")


def shown(value: Any) -> str:
    """A value as a template prints it."""
    match value:
        case None:
            return "<no value>"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "[" + " ".join(map(shown, value)) + "]"
        case dict() if type(value) is dict:
            return "map[" + " ".join(f"{key}:{shown(item)}" for key, item in sorted(value.items())) + "]"
    return str(value)
