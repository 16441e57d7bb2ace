"""``python -m medsft.core.engine.formats.gguf_tokenizer FILE.gguf FOLDER``: write a GGUF file's tokenizer to a folder."""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write ``tokenizer.json`` and the files beside it, as transformers understands the GGUF file."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
