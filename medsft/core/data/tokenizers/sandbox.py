"""Renders chat templates, which come with models and may be anybody's: no way out of jinja's sandbox, and no way to hang.

jinja's sandbox keeps a template from the machine, but lets it loop, repeat and recurse for ever. Here every turn of a loop,
every call and every filter takes from a budget of steps, of processor time and of characters; what would exceed it in one
stroke (a repetition, a power, a field width) is refused before it is carried out.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from medsft.core.data.tokenizers.message_loop import mark_messages

Messages = Sequence[Mapping[str, str]]
Fill = Callable[[Messages, bool], str]
"""(messages, add_generation_prompt) -> text. Raises `jinja2.TemplateError`."""

MAX_SOURCE = 2**20
"""Characters of a template; the longest of public models have some 30,000."""
_STEPS = 1_000_000
_SECONDS = 3.0
"""Of the processor, for one document; a row of 32 MiB takes less than one."""
_CHARACTERS = 2**28
"""Made in all, for one document: a row may have 2**25, and templates copy."""
_NUMBER = 1_000_000
"""Largest number that a filter or a method is given: a width, a count."""
_BITS = 4096
_ENTRY = 16
"""Characters that an entry of a list counts for."""
_MAKES_LISTS = frozenset({"list", "batch", "slice", "sort", "unique", "reverse", "map", "select", "reject", "groupby"})
_WIDE = re.compile(r"\*|\d{5,}")
"""In a format: a field that is given its width, or a large one."""


@dataclass(slots=True)
class _Budget:
    """What one rendering may still use."""

    steps: int
    characters: int
    wall_end: float
    """By the clock; only then is the processor's time looked at, which asks the kernel."""
    thread_end: float
    """By this thread's processor time, which other work on the machine does not use up."""


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


def compile_template(
    source: str, named: Mapping[str, str], strftime: Callable[[str], str], *, mark: str = "", between: str = ""
) -> Fill:
    """Return the function that fills a chat template in, with the names that templates of transformers expect.

    `named` are the tokens that a template may ask for, `strftime` formats the date. What stands between `{% generation %}` and
    `{% endgeneration %}` is put between two `mark`, and `between` before each message and behind the last one. Raises
    `jinja2.TemplateError` for a template that is none, and with `between` for one that does not write messages one by one.
    """
    if len(source) > MAX_SOURCE:
        raise jinja2.TemplateError(f"it has {len(source):,} characters, and {MAX_SOURCE:,} are the most that is read")
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.generation_mark = mark
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _checked_format(strftime)}
    del environment.globals["lipsum"]
    environment.filters = {name: _limited(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"tojson": _to_json, "join": environment.join_filter, "replace": _replace_filter}
    tree = _guarded(lambda: environment.parse(source))
    if between and not mark_messages(tree, between):
        raise jinja2.TemplateError("it does not write messages one by one")
    compiled = _guarded(lambda: environment.from_string(_Counted().visit(tree)))

    def fill(messages: Messages, add_generation_prompt: bool) -> str:
        ends = time.monotonic() + _SECONDS, time.thread_time() + _SECONDS
        token = _budget.set(_Budget(_STEPS, _CHARACTERS, *ends))
        try:
            return _guarded(lambda: compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **named))
        finally:
            _budget.reset(token)

    return fill


def _guarded(act: Callable[[], Any]) -> Any:
    """Whatever goes wrong in a template is the template's: raise it as one kind of error, without the texts of a document."""
    try:
        return act()
    except jinja2.TemplateError:
        raise
    except RecursionError:
        raise jinja2.TemplateError("it calls itself for ever, or is nested too deeply") from None
    except OverflowError:
        raise jinja2.TemplateError("it loops or counts without end") from None
    except Exception as error:
        raise jinja2.TemplateError(f"{type(error).__name__} while it was rendered") from None


def _spend(characters: int = 0) -> None:
    """Take a step, and the characters that it is going to make, from the budget."""
    if characters > _CHARACTERS:
        _refuse("makes a text without end")
    budget = _budget.get()
    if budget is None:  # while it is compiled, constants are computed
        return
    budget.steps -= 1
    budget.characters -= characters
    if budget.characters < 0:
        _refuse("makes a text without end")
    if budget.steps < 0 or (time.monotonic() > budget.wall_end and time.thread_time() > budget.thread_end):
        _refuse("loops without end")


def _refuse(what: str) -> NoReturn:
    raise jinja2.exceptions.SecurityError(f"it {what}")


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class _Generation(Extension):
    """The tag with which transformers learns the assistant's part. It is a scope of its own there, and so it is here."""

    tags = {"generation"}  # noqa: RUF012 - as jinja has it

    def parse(self, parser: Any) -> nodes.Node:
        """Return what stands inside, between the environment's marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = self.environment.generation_mark  # type: ignore[attr-defined]
        around = [nodes.Output([nodes.TemplateData(mark)])] if mark else []
        return nodes.Scope([*around, *body, *around]).set_lineno(line)


class _Counted(NodeTransformer):
    """Has every turn of a loop and every macro take a step, and joins texts where their length is counted."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_step(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        joined = nodes.EnvironmentAttribute("joined")
        return nodes.Call(joined, node.nodes, [], None, None).set_lineno(node.lineno)

    def _with_step(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        return node


class _Environment(ImmutableSandboxedEnvironment):
    """jinja's sandbox with the budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    generation_mark = ""

    def step(self) -> None:
        """A turn of a loop, or a call of a macro."""
        _spend()

    def joined(self, *parts: object) -> str:
        """What `a ~ b` is."""
        texts = [str(part) for part in parts]
        _spend(sum(map(len, texts)))
        return "".join(texts)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a template, a macro or a block puts out."""
        kept = []
        for piece in pieces:
            _spend(len(piece))
            kept.append(piece)
        return "".join(kept)

    def join_filter(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        """The filter `join`, counted."""
        items = value if attribute is None else map(make_attrgetter(self, attribute), value)
        return _join(str(d), [str(item) for item in items])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` if the result is not too large."""
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        _spend(_size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or a method of a value if that can be afforded."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, (str, bytes, int)):
            numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, int)]
            _check_numbers(numbers)
            _spend(sum(map(abs, numbers)))
        if isinstance(owner, str):
            if name == "translate":
                _refuse("asks for str.translate")
            if name == "replace":
                return _replace(owner, *args)
            if name == "join":
                return _join(owner, *args)
            _spend(_size_of_method(owner, name, args))
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format` of the sandbox, for formats whose fields have a known, small width."""
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            _check_widths(owner)
            if re.search(r"\{[^}]*\{", owner):
                _refuse("has a format within a format")
        return super().wrap_str_format(value)


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """Return how many characters or entries the result has; refuse numbers without end."""
    if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        return (len(left) + len(right)) * (1 if isinstance(left, str) else _ENTRY)
    if operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if hasattr(sequence, "__len__") and isinstance(times, int):
                return len(sequence) * max(0, times) * (1 if isinstance(sequence, str) else _ENTRY)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if operator in ("*", "**") and bits > _BITS:
            _refuse("computes a number without end")
    return 0


def _size_of_method(text: str, name: str, args: Sequence[Any]) -> int:
    """Return how many characters, or entries at their size in characters, a method of a text makes."""
    if name == "expandtabs":
        return len(text) * (args[0] if args and isinstance(args[0], int) else 8)
    if name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        return len(text) + _ENTRY * (text.count(separator) if separator else len(text) // 2)
    return len(text)


def _check_widths(text: str) -> None:
    if _WIDE.search(text):
        _refuse("has a format without end")


def _check_numbers(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _NUMBER for value in values):
        _refuse("asks for more than a million of something")


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    _spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


def _replace_filter(value: object, old: str, new: str, count: int | None = None) -> str:
    return _replace(str(value), str(old), str(new), -1 if count is None else count)


def _join(separator: str, parts: Iterable[str]) -> str:
    kept = list(parts)
    _spend(sum(len(part) + len(separator) for part in kept))
    return separator.join(kept)


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes a step, and refuses numbers and formats that would make a text without end."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
        texts = [arg for arg in args if isinstance(arg, str)]
        if name == "format" and texts:
            _check_widths(texts[0])
        if name == "sum" and (args[2:] or kwargs.get("start")):
            _refuse("adds up lists")
        lines = texts[0].count("\n") + 1 if name == "indent" and texts else 1
        wide = sum(arg for arg in (*args, *kwargs.values()) if isinstance(arg, int))
        _spend(sum(map(len, texts)) * (_ENTRY if name in _MAKES_LISTS else 1) + lines * wide)
        return function(*args, **kwargs)

    return limited


def _to_json(
    value: object, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it: jinja's own escapes what means something in HTML."""
    if isinstance(indent, int) and indent > 100:
        _refuse("indents without end")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    _spend(len(text))
    return text


def _checked_format(strftime: Callable[[str], str]) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        if len(format) > 200 or re.search(r"\d{3,}", format):
            _refuse("has a format without end")
        return strftime(format)

    return strftime_now
