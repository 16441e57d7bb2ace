"""The row format of ShareGPT: a list of turns, each with who speaks and what.

{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
"""

from __future__ import annotations

from collections.abc import Mapping

from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.messages import ROLE_AND_CONTENT, conversation_in

FROM_AND_VALUE = ("from", "value")


def sharegpt(row: Mapping[str, object], keys: Keys) -> Conversation:
    """Return the turns of a row; some files have role and content under the same key. Raises BadRow, see `conversation_in`."""
    return conversation_in(row, keys, FROM_AND_VALUE, ROLE_AND_CONTENT)
