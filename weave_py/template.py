"""The part of Go's text/template that people use with `weave report -f`.

Fields, variables, pipes, `range`, `if`, `else`, `with`, `end`, trim markers and a dozen functions. Anything else is
refused by name. Source: CLI spec §6.3; Go's text/template documentation.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weave_py.report import to_json


class TemplateError(Exception):
    """The template cannot be read."""


class ExecutionError(Exception):
    """The template can be read, but not filled from this report."""


_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<field>(?:\.[A-Za-z_]\w*)+|\.)"""
    r"""|(?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)|(?P<assign>:=|=)|(?P<word>[A-Za-z_]\w*)|(?P<mark>[()|,]))"""
)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_FUNCTIONS = frozenset(("and", "or", "not", "len", "index", "printf", "print", "println", "json", *_COMPARISONS))
_MAX_OUTPUT = 16 << 20


@dataclass(slots=True)
class _Text:
    text: str


@dataclass(slots=True)
class _Output:
    tokens: list[tuple[str, str]]


@dataclass(slots=True)
class _Block:
    kind: str
    tokens: list[tuple[str, str]]
    body: list["_Node"] = field(default_factory=list)
    otherwise: list["_Node"] = field(default_factory=list)


_Node = _Text | _Output | _Block


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise TemplateError(f"template: format:1: unexpected {text[position:].strip()[:20]!r} in action")
        kind = match.lastgroup
        tokens.append((kind, match[kind]))
        position = match.end()
    return tokens


def _nodes(template: str) -> list[_Node]:
    root: list[_Node] = []
    stack: list[tuple[_Block, list[_Node]]] = []
    current, position, trim = root, 0, False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        _add_text(current, text.lstrip() if trim else text, trim_end=bool(match[1]))
        position, trim = match.end(), bool(match[3])
        body = match[2].strip()
        if body.startswith("/*"):
            continue
        tokens = _tokens(body)
        if not tokens:
            raise TemplateError("template: format:1: missing value for command")
        word = tokens[0][1] if tokens[0][0] == "word" else ""
        if word in ("range", "if", "with"):
            block = _Block(word, tokens[1:])
            current.append(block)
            stack.append((block, current))
            current = block.body
        elif word == "else":
            if not stack:
                raise TemplateError("template: format:1: unexpected {{else}}")
            block = stack[-1][0]
            current = block.otherwise
            if len(tokens) > 1:
                nested = _Block(tokens[1][1], tokens[2:])
                current.append(nested)
                stack[-1] = (nested, stack[-1][1])
                current = nested.body
        elif word == "end":
            if not stack:
                raise TemplateError("template: format:1: unexpected {{end}}")
            current = stack.pop()[1]
        elif word and word not in _FUNCTIONS:
            raise TemplateError(f'template: format:1: function "{word}" not defined')
        else:
            current.append(_Output(tokens))
    rest = template[position:]
    if "{{" in rest:
        raise TemplateError("template: format:1: unclosed action")
    if stack:
        raise TemplateError("template: format:1: unexpected EOF")
    _add_text(current, rest.lstrip() if trim else rest, trim_end=False)
    return root


def _add_text(nodes: list[_Node], text: str, *, trim_end: bool) -> None:
    text = text.rstrip() if trim_end else text
    if text:
        nodes.append(_Text(text))


class _Scope:
    """Where a template is being filled: the dot, the root, variables."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.variables: dict[str, Any] = {"$": root}


def render(template: str, report: Mapping[str, Any]) -> str:
    """Fill a template. Raises TemplateError or ExecutionError."""
    nodes = _nodes(template)
    output: list[str] = []
    for part in _fill(nodes, report, _Scope(report)):
        output.append(part)
        if sum(map(len, output[-1:])) > _MAX_OUTPUT:
            raise ExecutionError("output is too large")
    return "".join(output)


def _fill(nodes: Sequence[_Node], dot: Any, scope: _Scope) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, _Text):
            yield node.text
        elif isinstance(node, _Output):
            name, tokens = _assignment(node.tokens)
            value = _pipeline(tokens, dot, scope)
            if name is None:
                yield _shown(value)
            else:
                scope.variables[name] = value
        else:
            yield from _fill_block(node, dot, scope)


def _fill_block(block: _Block, dot: Any, scope: _Scope) -> Iterator[str]:
    names, tokens = _range_variables(block.tokens)
    value = _pipeline(tokens, dot, scope)
    if block.kind == "if":
        yield from _fill(block.body if value else block.otherwise, dot, scope)
        return
    if not value:
        yield from _fill(block.otherwise, dot, scope)
        return
    if block.kind == "with":
        for name in names:
            scope.variables[name] = value
        yield from _fill(block.body, value, scope)
        return
    pairs = sorted(value.items()) if isinstance(value, Mapping) else enumerate(value)
    for key, item in pairs:
        for name, bound in zip(names[-2:], (key, item) if len(names) > 1 else (item,), strict=False):
            scope.variables[name] = bound
        yield from _fill(block.body, item, scope)


def _assignment(tokens: list[tuple[str, str]]) -> tuple[str | None, list[tuple[str, str]]]:
    if len(tokens) > 2 and tokens[0][0] == "variable" and tokens[1][0] == "assign":
        return tokens[0][1], tokens[2:]
    return None, tokens


def _range_variables(tokens: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    for position, (kind, _) in enumerate(tokens):
        if kind == "assign":
            return [text for kind_, text in tokens[:position] if kind_ == "variable"], tokens[position + 1 :]
    return [], tokens


def _pipeline(tokens: list[tuple[str, str]], dot: Any, scope: _Scope) -> Any:
    value: Any = None
    first = True
    for command in _split(tokens):
        value = _command(command, dot, scope, () if first else (value,))
        first = False
    return value


def _split(tokens: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Commands between the bars that stand outside of brackets."""
    commands: list[list[tuple[str, str]]] = [[]]
    depth = 0
    for token in tokens:
        depth += {("mark", "("): 1, ("mark", ")"): -1}.get(token, 0)
        if token == ("mark", "|") and depth == 0:
            commands.append([])
        else:
            commands[-1].append(token)
    return commands


def _command(tokens: list[tuple[str, str]], dot: Any, scope: _Scope, piped: tuple[Any, ...]) -> Any:
    operands = list(_operands(tokens, dot, scope))
    if not operands:
        raise TemplateError("template: format:1: missing value for command")
    if tokens[0][0] == "word" and tokens[0][1] in _FUNCTIONS:
        return _call(tokens[0][1], [*operands[1:], *piped])
    if len(operands) > 1 or piped:
        raise ExecutionError("can't give argument to non-function")
    return operands[0]


def _operands(tokens: list[tuple[str, str]], dot: Any, scope: _Scope) -> Iterator[Any]:
    position = 0
    while position < len(tokens):
        kind, text = tokens[position]
        position += 1
        if (kind, text) == ("mark", "("):
            depth, start = 1, position
            while depth and position < len(tokens):
                depth += {("mark", "("): 1, ("mark", ")"): -1}.get(tokens[position], 0)
                position += 1
            yield _pipeline(tokens[start : position - 1], dot, scope)
        elif kind == "string":
            yield text[1:-1] if text[0] == "`" else text[1:-1].encode().decode("unicode_escape")
        elif kind == "number":
            yield int(text)
        elif kind == "field":
            yield _field(dot, text)
        elif kind == "variable":
            name, _, path = text.partition(".")
            if name not in scope.variables:
                raise TemplateError(f'template: format:1: undefined variable "{name}"')
            yield _field(scope.variables[name], f".{path}") if path else scope.variables[name]
        elif text in ("true", "false"):
            yield text == "true"
        elif text == "nil":
            yield None
        elif text in _FUNCTIONS:
            yield text
        else:
            raise TemplateError(f'template: format:1: function "{text}" not defined')


def _field(value: Any, path: str) -> Any:
    for name in path.split(".")[1:]:
        if not name:
            continue
        if value is None:
            raise ExecutionError(f"nil has no field {name}")
        if not isinstance(value, Mapping) or name not in value:
            raise ExecutionError(f"can't evaluate field {name}")
        value = value[name]
    return value


def _call(name: str, arguments: list[Any]) -> Any:
    try:
        match name:
            case "and":
                return next((item for item in arguments if not item), arguments[-1])
            case "or":
                return next((item for item in arguments if item), arguments[-1])
            case "not":
                return not arguments[0]
            case "len":
                return len(arguments[0] or ())
            case "index":
                value = arguments[0]
                for key in arguments[1:]:
                    value = value[key]
                return value
            case "eq":
                return any(arguments[0] == other for other in arguments[1:])
            case "ne":
                return arguments[0] != arguments[1]
            case "lt":
                return arguments[0] < arguments[1]
            case "le":
                return arguments[0] <= arguments[1]
            case "gt":
                return arguments[0] > arguments[1]
            case "ge":
                return arguments[0] >= arguments[1]
            case "printf":
                return _printf(arguments[0], arguments[1:])
            case "print":
                return "".join(map(_shown, arguments))
            case "println":
                return " ".join(map(_shown, arguments)) + "\n"
        return to_json(arguments[0], indent=False)
    except (LookupError, TypeError) as error:
        raise ExecutionError(f"error calling {name}: {error}") from error


def _printf(pattern: str, arguments: list[Any]) -> str:
    """Go's verbs are Python's, but for %v and %q."""
    rest = iter(arguments)

    def one(match: re.Match[str]) -> str:
        if match[2] == "%":
            return "%"
        value = next(rest)
        if match[2] in "vs":
            return f"%{match[1]}s" % _shown(value)
        return to_json(value, indent=False) if match[2] == "q" else f"%{match[1]}{match[2]}" % value

    try:
        return re.sub(r"%([-+ 0-9.]*)([a-zA-Z%])", one, pattern)
    except (StopIteration, ValueError, RuntimeError) as error:
        raise ExecutionError(f"error calling printf: {error}") from error


def _shown(value: Any) -> str:
    match value:
        case None:
            return "<no value>"
        case bool():
            return str(value).lower()
        case list():
            return "[" + " ".join(map(_shown, value)) + "]"
        case dict() if type(value) is dict:
            return "map[" + " ".join(f"{key}:{_shown(item)}" for key, item in sorted(value.items())) + "]"
    return str(value)
