"""The row format of Alpaca: an instruction, often with an input to it, and the output.

{"instruction": "Name the drug class.", "input": "atenolol", "output": "Beta blocker."}
"""

from __future__ import annotations

from collections.abc import Mapping

from medsft.core.data.sources.base import EmptyRow
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.question_answer import conversation_of
from medsft.core.data.sources.values import optional_text, text


def alpaca(row: Mapping[str, object], keys: Keys) -> Conversation:
    """The instruction, a blank line and the input as the question, the output as the answer. Raises BadRow.

    An input that is absent, null or empty adds nothing.
    """
    instruction, given = text(row, keys.question), optional_text(row, keys.input) if keys.input else ""
    if not instruction.strip():
        raise EmptyRow(f"empty instruction under '{keys.question}'")
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    return conversation_of(row, keys, question, text(row, keys.answer))
