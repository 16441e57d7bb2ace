"""Text from outside (records, names, paths, logs, errors of libraries) made fit for a terminal.

A terminal obeys ESC, the C0 and the C1 controls: they move the cursor, rename the window, and in some terminals type.
Bidirectional controls and invisible format characters show a text in another order than it has, or hide a part of it. All of
them are replaced here, each character by one visible sign, so that positions and styles in a text stay right. JSON needs none
of this: it escapes them.

The joiners U+200C and U+200D stay, because Persian, Indic scripts and emoji are wrong without them, and so do the marks of
Arabic numbers and verses, which have a shape of their own.
"""

from __future__ import annotations

_UNKNOWN = "\ufffd"
_PICTURES = 0x2400
"""Unicode has a picture of each C0 control from here on: U+241B shows ESC."""
_SIGNS: dict[int, str] = {
    **{code: chr(_PICTURES + code) for code in range(0x20)},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), _UNKNOWN),
    # Marks, embeddings, overrides and isolates of direction.
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), _UNKNOWN),
    # Separators of lines and paragraphs, and what takes no room: zero width spaces, invisible operators, byte order mark.
    **dict.fromkeys((0x180E, 0x200B, 0x2028, 0x2029, *range(0x2060, 0x2066), *range(0x206A, 0x2070), 0xFEFF), _UNKNOWN),
    # Annotations, tags (which carry hidden ASCII), and halves of characters, which no terminal's encoding can hold.
    **dict.fromkeys((*range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080), *range(0xD800, 0xE000)), _UNKNOWN),
}
_SIGNS_BUT_LAYOUT = {code: sign for code, sign in _SIGNS.items() if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Return a text as a terminal may show it, of the same length; ends of lines and tabs stay."""
    return text.translate(_SIGNS_BUT_LAYOUT)


def one_line(text: str) -> str:
    """Return a name, a path or a line as a terminal may show it, of the same length and without ends of lines."""
    return text.translate(_SIGNS)
