"""The part of Go's text/template that people use with `weave report -f`: reading a template.

Fields, variables, pipes, `range`, `if`, `else`, `with`, `end`, trim markers, comments and a dozen functions. What is
left out is refused by name. A template is read whole before anything is filled in, so that a mistake shows whatever
the report holds. Filling is in `template_fill.py`. Source: CLI spec §6.3; Go's text/template documentation.
"""

import ast
import re
from dataclasses import dataclass, field

COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
FUNCTIONS = frozenset(("and", "or", "not", "len", "index", "printf", "print", "println", "json")) | COMPARISONS
_BLOCKS = frozenset(("range", "if", "with"))
_LEFT_OUT_ACTIONS = frozenset(("template", "define", "block", "break", "continue"))
_LEFT_OUT_FUNCTIONS = frozenset(("html", "js", "urlquery", "call", "slice"))
_MAX_DEPTH = 50
_CONSTANTS = {"true": True, "false": False, "nil": None}

_COMMENT = re.compile(r"\s*/\*.*?\*/", re.DOTALL)
_CLOSE = re.compile(r"(\s-)?\}\}")
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>[-+]?\d+(?:\.\d+)?)"""
    r"""|(?P<field>\.[A-Za-z_]\w*|\.)|(?P<variable>\$\w*)|(?P<assign>:=|=)|(?P<word>[A-Za-z_]\w*)|(?P<mark>[()|,])"""
)


class TemplateError(Exception):
    """The template cannot be read."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant."""

    value: object


@dataclass(frozen=True, slots=True)
class Path:
    """Fields of the dot (`variable` is None), of a variable, or of what a pipe in brackets yields."""

    variable: str | None
    fields: tuple[str, ...]
    pipe: "Pipe | None" = None


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its operands."""

    function: str
    operands: "tuple[Operand, ...]"


Operand = Literal | Path | Call


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each given the one before's value as its last operand; the last value goes to the variables.

    `declares`: the variables begin here (`:=`), else they are those that exist (`=`).
    """

    variables: tuple[str, ...]
    commands: tuple[Operand, ...]
    declares: bool = True


@dataclass(slots=True)
class Output:
    """A pipe whose value is shown."""

    pipe: Pipe


@dataclass(slots=True)
class Branch:
    """`range`, `if` or `with`, and what it holds."""

    kind: str
    pipe: Pipe
    body: "list[Node]" = field(default_factory=list)
    otherwise: "list[Node]" = field(default_factory=list)


Node = str | Output | Branch


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    # Whether white space stands before it: `(f).Name` is a field of what is in brackets, `f .Name` an operand.
    spaced: bool


@dataclass(slots=True)
class _Open:
    """A block that waits for its `end`. `chained`: it was opened by an `else if` and ends with the one around it."""

    branch: Branch
    outer: list[Node]
    variables: int
    chained: bool
    in_otherwise: bool = False


class _Reader:
    """Reads one template."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._position = 0
        self._variables = ["$"]
        self._stack: list[_Open] = []
        self._current: list[Node] = []
        self._tokens: list[_Token] = []
        self._depth = 0

    def fail(self, text: str) -> TemplateError:
        """The error that the place read last makes."""
        line = self._template.count("\n", 0, self._position) + 1
        return TemplateError(f"template: format:{line}: {text}")

    def read(self) -> list[Node]:
        """Everything. Raises TemplateError."""
        root = self._current
        trim = False
        while True:
            start = self._template.find("{{", self._position)
            text = self._template[self._position :] if start < 0 else self._template[self._position : start]
            trimming = start >= 0 and re.match(r"-\s", self._template[start + 2 : start + 4]) is not None
            text = text.lstrip() if trim else text
            text = text.rstrip() if trimming else text
            if text:
                self._current.append(text)
            if start < 0:
                break
            self._position = start + (3 if trimming else 2)
            trim = self._action()
        if self._stack:
            self._position = len(self._template)
            raise self.fail("unexpected EOF")
        return root

    # --- one action ---

    def _action(self) -> bool:
        """Read up to the closing braces; whether they trim what follows."""
        comment = _COMMENT.match(self._template, self._position)
        if comment is not None:
            self._position = comment.end()
            trim = self._close()
            if trim is None:
                raise self.fail("comment ends before closing delimiter")
            return trim
        self._tokens, spaced = [], False
        while (trim := self._close()) is None:
            match = _TOKEN.match(self._template, self._position)
            if match is None or match.lastgroup is None:
                rest = self._template[self._position : self._position + 1]
                raise self.fail(f"unexpected {rest!r} in action" if rest else "unclosed action")
            if match.lastgroup != "space":
                self._tokens.append(_Token(match.lastgroup, match[0], spaced))
            spaced = match.lastgroup == "space"
            self._position = match.end()
        self._statement()
        return trim

    def _close(self) -> bool | None:
        match = _CLOSE.match(self._template, self._position)
        if match is None:
            return None
        self._position = match.end()
        return match[1] is not None

    def _statement(self) -> None:
        if not self._tokens:
            raise self.fail("missing value for command")
        word = self._tokens[0].text if self._tokens[0].kind == "word" else ""
        if word in _LEFT_OUT_ACTIONS:
            raise self.fail(f"unsupported action {{{{{word}}}}}")
        if word in _BLOCKS:
            del self._tokens[0]
            self._open(word, chained=False)
        elif word == "else":
            del self._tokens[0]
            self._else()
        elif word == "end":
            del self._tokens[0]
            self._nothing_more("end")
            self._end()
        else:
            self._current.append(Output(self._whole_pipe("command")))

    def _open(self, kind: str, *, chained: bool) -> None:
        if len(self._stack) >= _MAX_DEPTH:
            raise self.fail(f"blocks are nested more than {_MAX_DEPTH} deep")
        variables = len(self._variables)
        branch = Branch(kind, self._whole_pipe(kind, several=kind == "range"))
        self._current.append(branch)
        self._stack.append(_Open(branch, self._current, variables, chained))
        self._current = branch.body

    def _else(self) -> None:
        if not self._stack or self._stack[-1].in_otherwise:
            raise self.fail("unexpected {{else}}")
        top = self._stack[-1]
        top.in_otherwise = True
        self._current = top.branch.otherwise
        if self._tokens:
            kind = self._tokens.pop(0).text
            if kind not in ("if", "with"):
                raise self.fail(f"unexpected <{kind}> in else")
            self._open(kind, chained=True)

    def _end(self) -> None:
        if not self._stack:
            raise self.fail("unexpected {{end}}")
        while True:
            top = self._stack.pop()
            self._current = top.outer
            del self._variables[top.variables :]
            if not top.chained:
                return

    def _nothing_more(self, where: str) -> None:
        if self._tokens:
            raise self.fail(f"unexpected <{self._tokens[0].text}> in {where}")

    # --- pipes ---

    def _whole_pipe(self, where: str, *, several: bool = False) -> Pipe:
        pipe = self._pipe(where, several=several)
        self._nothing_more(where)
        return pipe

    def _pipe(self, where: str, *, several: bool = False) -> Pipe:
        variables, declares = self._assigned(several)
        commands = [self._command(where, piped=False)]
        while self._next_is("|"):
            del self._tokens[0]
            commands.append(self._command(where, piped=True))
        self._variables += variables if declares else ()
        return Pipe(variables, tuple(commands), declares)

    def _assigned(self, several: bool) -> tuple[tuple[str, ...], bool]:
        """The variables before `:=` or `=`, and whether it was the first."""
        kinds = [token.kind if token.kind != "mark" else token.text for token in self._tokens[:4]]
        for length, form in ((1, ["variable", "assign"]), (3, ["variable", ",", "variable", "assign"])):
            if kinds[: length + 1] != form:
                continue
            if length == 3 and not several:
                raise self.fail("too many declarations")
            names = tuple(token.text for token in self._tokens[:length:2])
            declares = self._tokens[length].text == ":="
            for name in names if not declares else ():
                self._known(name)
            del self._tokens[: length + 1]
            return names, declares
        return (), True

    def _known(self, name: str) -> None:
        if name not in self._variables:
            raise self.fail(f'undefined variable "{name}"')

    def _next_is(self, text: str) -> bool:
        return bool(self._tokens) and (self._tokens[0].kind, self._tokens[0].text) == ("mark", text)

    def _command(self, where: str, *, piped: bool) -> Operand:
        if not self._tokens or (self._tokens[0].kind == "mark" and self._tokens[0].text != "("):
            raise self.fail(f"missing value for {where}")
        function = None
        if self._tokens[0].kind == "word" and self._tokens[0].text not in _CONSTANTS:
            function = self._function(self._tokens.pop(0).text)
        operands = []
        while self._tokens and not self._next_is("|") and not self._next_is(")"):
            operands.append(self._operand())
        if function is not None:
            return Call(function, tuple(operands))
        if isinstance(operands[0], Literal) and (piped or len(operands) > 1):
            raise self.fail("non executable command in pipeline")
        return operands[0] if len(operands) == 1 and not piped else Call("", tuple(operands))

    def _function(self, name: str) -> str:
        if name in _LEFT_OUT_FUNCTIONS:
            raise self.fail(f'unsupported function "{name}"')
        if name not in FUNCTIONS:
            raise self.fail(f'function "{name}" not defined')
        return name

    def _operand(self) -> Operand:
        token = self._tokens.pop(0)
        match token.kind:
            case "string":
                return Literal(self._string(token.text))
            case "number":
                return Literal(float(token.text) if "." in token.text else int(token.text))
            case "field":
                return Path(None, (token.text[1:], *self._fields()) if token.text != "." else ())
            case "variable":
                self._known(token.text)
                return Path(token.text, self._fields())
            case "word" if token.text in _CONSTANTS:
                return Literal(_CONSTANTS[token.text])
            case "word":
                return Call(self._function(token.text), ())
            case "mark" if token.text == "(":
                return self._bracketed()
        raise self.fail(f"unexpected <{token.text}> in operand")

    def _bracketed(self) -> Path:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.fail(f"brackets are nested more than {_MAX_DEPTH} deep")
        pipe = self._pipe("parenthesized pipeline")
        if not self._next_is(")"):
            raise self.fail("unclosed left paren")
        if pipe.variables:
            raise self.fail("unsupported assignment in brackets")
        del self._tokens[0]
        self._depth -= 1
        return Path(None, self._fields(), pipe)

    def _fields(self) -> tuple[str, ...]:
        """The fields that follow without a blank."""
        names: list[str] = []
        while self._tokens and self._tokens[0].kind == "field" and not self._tokens[0].spaced:
            names.append(self._tokens.pop(0).text[1:])
        return tuple(names)

    def _string(self, text: str) -> str:
        if text[0] == "`":
            return text[1:-1]
        try:
            return str(ast.literal_eval(text))
        except (SyntaxError, ValueError):
            raise self.fail(f"invalid syntax: {text}") from None


def read(template: str) -> list[Node]:
    """The template's parts. Raises TemplateError."""
    return _Reader(template).read()
