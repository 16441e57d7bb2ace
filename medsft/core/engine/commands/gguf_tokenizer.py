"""``python -m medsft.core.engine.commands.gguf_tokenizer FILE.gguf FOLDER``: write a GGUF file's tokenizer to a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from medsft.core.disk import writing_to
from medsft.core.engine.commands.entry_point import run_process
from medsft.errors import ExitCode


def convert(gguf: Path, folder: Path) -> None:
    """Write ``tokenizer.json`` and the files beside it, as transformers understands the GGUF file."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(folder)
    _drop_invented_tokens(folder / "tokenizer.json")


def _drop_invented_tokens(path: Path) -> None:
    """transformers adds the end token of GPT-2 behind a vocabulary that has none; the model has no row for it."""
    tokenizer = json.loads(path.read_text("utf-8"))
    vocab = tokenizer["model"]["vocab"]
    known = vocab if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] in known]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def main(arguments: list[str]) -> None:
    """Entry point of the process. It ends with 3 where the disk is at fault, not the file."""
    folder = Path(arguments[1])
    with writing_to(folder.parent, ExitCode.DATA):
        convert(Path(arguments[0]), folder)


if __name__ == "__main__":
    sys.exit(run_process(main))
