"""From files of rows to a tokenized set on disk, or the set that is there already.

    hash the inputs --> the spec in the set's manifest? --> use it
         |
         no set: make one aside, rename it (module `write`)

A lock beside the set makes a second process wait and then use what the first one made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsft.core.data.dataset.adopt import adopt
from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized, set_exists
from medsft.core.data.dataset.manifest import (
    differences,
    hash_inputs,
    read_manifest,
    template_differences,
    tokenizer_differences,
    turns_differences,
)
from medsft.core.data.dataset.spec import TokenizeSpec, sha256_of_template
from medsft.core.data.dataset.write import (
    Progress,
    ProgressCallback,
    ProgressReporter,
    input_bytes,
    make_set,
    refuse_foreign_files,
    remove_left_overs,
)
from medsft.core.data.sources.open import refuse_unreadable
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.disk import trouble
from medsft.errors import DataError, DiskError, ExitCode

_LOCK_POLL_SECONDS = 1.0


def tokenize(
    spec: TokenizeSpec,
    folder: Path,
    *,
    retokenize: bool = False,
    trust_cache: bool = False,
    document_index: bool = True,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> TokenizedDataset:
    """Make the set `folder`, whose name is the set's, or use the one that is there if it was made of the same.

    `retokenize` replaces a set that was made of something else. `trust_cache` uses one that has no manifest, after the checks
    that can be made without. `document_index` says in the ``.idx`` files where documents end, as NVIDIA's Megatron reads it;
    the original leaves that out. `workers` are processes; None: one for each core.

    Raises DataError: bad rows; a set made of something else (without `retokenize`); a set without a manifest (without
    `trust_cache`); no data and no set. An interrupted call leaves nothing that looks like a set.
    """
    report = progress or (lambda _: None)
    opened = spec.open_tokenizer()
    if not spec.data:
        return _use(spec, folder, opened, trust_cache=trust_cache)
    refuse_unreadable(spec.data)
    wanted = spec.resolved(opened, hash_inputs(spec.data, ProgressReporter("hash", input_bytes(spec.data), report).tell))
    if not retokenize and _holds_files(folder):
        return _reuse(wanted, folder, opened, trust_cache=trust_cache)
    before = _inode(folder)
    with _lock(folder, report):
        remove_left_overs(folder)
        made_meanwhile = _inode(folder) not in (None, before)
        if made_meanwhile or (not retokenize and _holds_files(folder)):
            return _reuse(wanted, folder, opened, trust_cache=trust_cache)
        refuse_foreign_files(folder)
        make_set(folder, wanted, opened, workers=workers, document_index=document_index, report=report)
        return open_tokenized(folder)


def _inode(folder: Path) -> int | None:
    """Tells a set from one that was put in its place."""
    return folder.stat().st_ino if folder.is_dir() else None


@contextmanager
def _lock(folder: Path, report: ProgressCallback) -> Iterator[None]:
    """Hold the set's lock; while another process has it, say so and wait."""
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        began = time.monotonic()
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_SECONDS)
                break
            except Timeout:
                waited = time.monotonic() - began
                report(Progress(stage="wait", done_bytes=0, total_bytes=0, documents=0, seconds=waited))
    except OSError as error:
        if (found := trouble(error, folder.parent)) is not None:
            raise DiskError(found.message, hint=found.hint, exit_code=ExitCode.DATA) from None
        raise DataError(
            f"{folder.parent} cannot be written: {error.strerror or error}", hint="choose another --tokenized_data_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _use(spec: TokenizeSpec, folder: Path, opened: OpenedTokenizer, *, trust_cache: bool) -> TokenizedDataset:
    """The set as it is, when no data is given: the tokenizer and the template must still be those of the set."""
    if not set_exists(folder):
        raise DataError(
            f"no data is given and {folder} holds no tokenized set",
            hint="give --data, or check --run_name and --tokenized_data_dir",
        )
    manifest = read_manifest(folder)
    if manifest is None and trust_cache:
        return adopt(folder, opened)
    data = open_tokenized(folder)
    changed = tokenizer_differences(data.manifest, opened.tokenizer.fingerprint)
    if data.manifest.recipe is None and data.manifest.vocab_size != opened.tokenizer.vocab_size:
        changed.append("the tokenizer has another number of tokens than the one with which the set was trusted")
    changed += template_differences(data.manifest, opened.template.name, sha256_of_template(opened))
    changed += turns_differences(data.manifest, spec.turns)
    if changed:
        raise _stale(folder, changed, "give --data with --retokenize, or the --tokenizer, --template and --turns it has")
    return data


def _reuse(wanted: TokenizeSpec, folder: Path, opened: OpenedTokenizer, *, trust_cache: bool) -> TokenizedDataset:
    """The set that is there, if it was made of what is asked for now."""
    if not set_exists(folder):
        raise DataError(
            f"{folder} exists but holds no tokenized set",
            hint="choose another --run_name, or remove the folder",
        )
    if trust_cache and read_manifest(folder) is None:
        return adopt(folder, opened)
    data = open_tokenized(folder)
    if trust_cache and data.manifest.recipe is None:
        return data
    if changed := differences(data.manifest, wanted):
        raise _stale(folder, changed, "tokenize again with --retokenize, or choose another --run_name")
    return data


def _stale(folder: Path, changed: list[str], hint: str) -> DataError:
    lines = "\n".join(f"  - {line}" for line in changed)
    return DataError(f"the tokenized set in {folder} was made of something else:\n{lines}", hint=hint)


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
