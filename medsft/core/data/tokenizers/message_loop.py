"""Whether a chat template writes messages one after the other, none of them in view of those behind it.

Of such a template one rendering of a conversation tells what it writes of each beginning of that conversation:

    before the loop | message | message | ... | behind the loop

The template's syntax tree tells it, and every doubt means no: the template has one loop over the messages, at its top level;
elsewhere it asks for the first message only; it never asks how many there are or which is the last; what stands behind the loop
needs nothing that the loop sets, and only there it is asked whether a prompt is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jinja2 import nodes

_MESSAGES, _PROMPT, _LOOP = "messages", "add_generation_prompt", "loop"
_KNOWN_OF_LOOP = frozenset({"first", "index", "index0", "previtem"})
"""What a loop tells that does not depend on the messages to come"""
_UNCLEAR = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block, nodes.ContextReference, nodes.Break)
"""What reaches elsewhere, or ends a loop before its last message"""


def message_loop(template: nodes.Template) -> nodes.For | None:
    """Return the loop of a template that writes messages one after the other; None for another template."""
    others: set[str | None] = {_MESSAGES, *_other_names(template)}
    found = [number for number, node in enumerate(template.body) if isinstance(node, nodes.For) and _name(node.iter) in others]
    if len(found) != 1 or any(True for _ in template.find_all(_UNCLEAR)):
        return None
    place = found[0]
    loop, before, behind = template.body[place], template.body[:place], template.body[place + 1 :]
    assert isinstance(loop, nodes.For)
    if loop.test is not None or loop.recursive or loop.else_:
        return None
    asked = sum(node.name in others for node in template.find_all(nodes.Name) if node.ctx == "load")
    allowed = sum(map(_is_first, _all([*before, *loop.body]))) + sum(map(_is_other_name, _all(before)))
    if asked != 1 + allowed or _loop_looks_ahead(loop) or _PROMPT in _loaded([*before, loop]):
        return None
    return None if _stored(template) & _loaded(behind) else loop


def mark_messages(template: nodes.Template, mark: str) -> bool:
    """Have a template write a mark before each message and behind the last one, if it writes one after the other."""
    loop = message_loop(template)
    if loop is None:
        return False
    place = next(number for number, node in enumerate(template.body) if node is loop)
    template.body.insert(place + 1, nodes.Output([nodes.TemplateData(mark)]))
    loop.body.insert(0, nodes.Output([nodes.TemplateData(mark)]))
    return True


def _all(body: Sequence[nodes.Node]) -> Iterator[nodes.Node]:
    for node in body:
        yield node
        yield from node.find_all(nodes.Node)


def _name(node: nodes.Node) -> str | None:
    return node.name if isinstance(node, nodes.Name) else None


def _is_first(node: nodes.Node) -> bool:
    """Whether a node is `messages[0]`."""
    return isinstance(node, nodes.Getitem) and _name(node.node) == _MESSAGES and _is_constant(node.arg, 0)


def _is_constant(node: nodes.Node | None, value: object) -> bool:
    return isinstance(node, nodes.Const) and node.value == value and type(node.value) is type(value)


def _is_other_name(node: nodes.Node) -> bool:
    """Whether a node gives the messages, or all but the first, another name."""
    if not isinstance(node, nodes.Assign) or not isinstance(node.target, nodes.Name):
        return False
    if _name(node.node) == _MESSAGES:
        return True
    rest = node.node
    if not isinstance(rest, nodes.Getitem) or _name(rest.node) != _MESSAGES or not isinstance(rest.arg, nodes.Slice):
        return False
    return _is_constant(rest.arg.start, 1) and rest.arg.stop is None and rest.arg.step is None


def _other_names(template: nodes.Template) -> set[str]:
    """Return names that stand for the messages, or for all but the first, wherever they are given."""
    given: dict[str, list[bool]] = {}
    for node in template.find_all(nodes.Assign):
        for name in _stored(node.target):
            given.setdefault(name, []).append(_is_other_name(node))
    return {name for name, each in given.items() if all(each)}


def _loop_looks_ahead(loop: nodes.For) -> bool:
    asked = sum(node.name == _LOOP for node in loop.find_all(nodes.Name))
    known = sum(_name(node.node) == _LOOP and node.attr in _KNOWN_OF_LOOP for node in loop.find_all(nodes.Getattr))
    return asked != known


def _loaded(body: Sequence[nodes.Node]) -> set[str]:
    return {node.name for node in _all(body) if isinstance(node, nodes.Name) and node.ctx == "load"}


def _stored(node: nodes.Node) -> set[str]:
    """Return the names that are given a value, fields of a namespace under its own name, and macros."""
    names = {one.name for one in _all([node]) if isinstance(one, nodes.Name) and one.ctx != "load"}
    return names | {one.name for one in _all([node]) if isinstance(one, nodes.NSRef | nodes.Macro)}
