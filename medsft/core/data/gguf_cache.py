"""The tokenizer inside a GGUF file, converted once to a folder with a ``tokenizer.json``.

The conversion is transformers', so it runs as a process of its own: this layer imports neither transformers nor torch.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from medsft.core.data.manifest import DATA_LAYER_VERSION
from medsft.core.files import cache_folder
from medsft.errors import DataError


def converted_tokenizer(gguf: Path) -> Path:
    """The ``tokenizer.json`` of a GGUF file. Raises DataError when it has no tokenizer that transformers can read."""
    status = gguf.stat()
    identity = f"{DATA_LAYER_VERSION} {gguf.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = cache_folder("tokenizers") / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not (folder / "tokenizer.json").is_file():
        _convert(gguf, folder)
    return folder / "tokenizer.json"


def _convert(gguf: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as hidden:
        aside = Path(hidden) / folder.name
        done = subprocess.run(
            [sys.executable, "-m", "medsft.core.engine.formats.gguf_tokenizer", str(gguf.resolve()), str(aside)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not (aside / "tokenizer.json").is_file():
            reason = done.stderr.strip().rpartition("\n")[2]
            raise DataError(
                f"{gguf}: its tokenizer cannot be read: {reason}",
                hint="give a tokenizer.json or tokenizer.model of the same model with --tokenizer",
            )
        if not (folder / "tokenizer.json").is_file():  # else another process was faster
            aside.rename(folder)
