"""The row format of plain text, such as guidelines for continued training: all of it is trained on.

{"text": "Fever in children under five: ..."}
"""

from __future__ import annotations

from collections.abc import Mapping

from medsft.core.data.sources.base import EmptyRow
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation, Message
from medsft.core.data.sources.values import text


def plain_text(row: Mapping[str, object], keys: Keys) -> Conversation:
    """The text of a row as the one message of its document. Raises BadRow."""
    content = text(row, keys.text)
    if not content.strip():
        raise EmptyRow(f"empty text under '{keys.text}'")
    return (Message("text", content),)
