"""Other ways to turn rows into ids, each with a process for each core: the tokenizers' libraries alone, and the original's way.

The libraries alone read the rows and encode their texts, nothing else. The original's way is written from the description of
what its script does: one pool, 25 lines a task, a Python loop over the names of control tokens, ids and roles sent back to one
process, which writes them. Nothing of the original runs here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from medsft.core.data.tokenizers.open import MEDITRON_EXTRA_IDS
from medsft.core.data.tokenizers.template import Role

CORES = len(os.sched_getaffinity(0))
_LINES = 500
_ORIGINAL_LINES = 25
_state: dict[str, Any] = {}
"""Of a worker process."""


def tokenizers(folder: Path) -> Callable[[Path], None]:
    """The library `tokenizers`, in batches of its own, one thread a process."""
    return partial(_encode_all, partial(_open_tokenizers, folder / "tokenizer.json"))


def sentence_piece(file: Path) -> Callable[[Path], None]:
    """The library `sentencepiece`, text by text."""
    return partial(_encode_all, partial(_open_sentence_piece, file))


def original(file: Path, out: Path) -> Callable[[Path], None]:
    """The original's way, see the module."""
    return partial(_as_original, file, out)


def _open_tokenizers(file: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    _state["encode"] = lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]


def _open_sentence_piece(file: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    _state["model"] = model = SentencePieceProcessor(model_file=str(file))
    _state["encode"] = lambda texts: [model.encode(text, out_type=int) for text in texts]


def _encode_all(open_library: Callable[[], None], rows: Path) -> None:
    with get_context("spawn").Pool(CORES, initializer=open_library) as pool, rows.open(encoding="utf-8") as lines:
        for _ in pool.imap(_encode_lines, iter(lambda: list(islice(lines, _LINES)), [])):
            pass


def _encode_lines(lines: Iterable[str]) -> int:
    texts = [text for line in lines for text in json.loads(line).values()]
    return sum(map(len, _state["encode"](texts)))


def _as_original(file: Path, out: Path, rows: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (
        get_context("spawn").Pool(CORES, initializer=_open_sentence_piece, initargs=(file,)) as pool,
        rows.open(encoding="utf-8") as lines,
        (out / "text.bin").open("wb") as text,
        (out / "role.bin").open("wb") as role,
    ):
        for ids, roles in pool.imap(_document, lines, _ORIGINAL_LINES):
            text.write(np.array(ids, np.uint16).tobytes())
            role.write(np.array(roles, np.uint16).tobytes())


def _document(line: str) -> tuple[list[int], list[int]]:
    row = json.loads(line)
    messages = [("question", row["prompt"], Role.QUESTION), ("answer", row["gold"], Role.ANSWER)]
    parts = [(_ids(f"<|im_start|>{word}\n{text}<|im_end|>\n"), int(role)) for word, text, role in messages]
    return [id_ for ids, _ in parts for id_ in ids], [role for ids, role in parts for _ in ids]


def _ids(text: str) -> list[int]:
    model = _state["model"]
    names = ["<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>", "<s>", "</s>", *MEDITRON_EXTRA_IDS]
    ids: list[int] = []
    while text:
        found = [(at, order) for order, name in enumerate(names) if (at := text.find(name)) >= 0]
        if not found:
            return ids + model.encode(text, out_type=int)
        at, order = min(found)
        ids += [*(model.encode(text[:at], out_type=int) if at else []), len(model) + order]
        text = text[at + len(names[order]) :]
    return ids
