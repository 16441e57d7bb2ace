"""Text that changes often."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static


def put(widget: Static, content: Content | str) -> None:
    """Show other text, as it is and not as markup; nothing happens when it is the same, for each update lays out the screen."""
    new = Content(content) if isinstance(content, str) else content
    old = widget.content
    if not isinstance(old, Content) or (old.plain, old.spans) != (new.plain, new.spans):
        widget.update(new)
