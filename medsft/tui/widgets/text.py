"""Text that may come from elsewhere and change often."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from medsft.core.printable import printable


def shown(content: Content | str) -> Content:
    """Return content as a screen may show it: a text as it is and not as markup, without what steers a terminal."""
    if isinstance(content, str):
        return Content(printable(content))
    plain = printable(content.plain)  # of the same length, so the styles stay where they are
    return content if plain == content.plain else Content(plain, list(content.spans))


def put(widget: Static, content: Content | str) -> None:
    """Show other text; nothing happens when it is the same, for each update lays out the screen."""
    new = shown(content)
    old = widget.content
    if not isinstance(old, Content) or (old.plain, old.spans) != (new.plain, new.spans):
        widget.update(new)
