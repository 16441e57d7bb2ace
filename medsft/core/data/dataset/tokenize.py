"""From JSONL to a tokenised set on disk, or the set that is there already.

    hash the inputs --> same recipe as the set's manifest? --> use it
         |
         no set: make one aside, rename it (module `make`)

A lock beside the set makes a second process wait and then use what the first one made.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from medsft.core.data.dataset.adopt import trust
from medsft.core.data.dataset.manifest import (
    MANIFEST_NAME,
    InputFile,
    Recipe,
    differences,
    hash_inputs,
    read_manifest,
    template_differences,
    tokenizer_differences,
)
from medsft.core.data.dataset.tokenized import TokenizedData, open_tokenized, set_exists
from medsft.core.data.dataset.workers import Job
from medsft.core.data.dataset.write import (
    Clock,
    Progress,
    ProgressCallback,
    input_bytes,
    make_set,
    refuse_foreign_files,
    remove_left_overs,
)
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.lines import refuse_unreadable
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.open import MEDITRON_EXTRA_IDS
from medsft.core.data.tokenizers.special_tokens import SpecialInText
from medsft.core.disk import trouble
from medsft.errors import DataError, DiskError, ExitCode

_LOCK_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """What to tokenise, and how."""

    out_dir: Path
    """The set is the folder `name` in here."""
    name: str
    data: tuple[Path, ...] = ()
    """JSONL files; empty: use the set that is there."""
    tokenizer: Path
    template: str = "meditron"
    keys: Keys = Keys()
    bad_rows: Literal["error", "skip"] = "error"
    special_in_text: SpecialInText = "escape"
    extra_ids: tuple[str, ...] = MEDITRON_EXTRA_IDS
    """Of a tokenizer.model; nothing to other tokenizers."""
    prefer_model_file: bool = False
    """Take a folder's tokenizer.model although it has a tokenizer.json."""
    template_date: date | None = None
    """The date for a chat template that writes one; None: today."""
    document_index: bool = True
    """Say in the ``.idx`` files where documents end, as NVIDIA's Megatron reads it; the original leaves that out."""
    retokenize: bool = False
    """Replace a set that was made otherwise."""
    trust_cache: bool = False
    """Use a set that has no manifest, after the checks that can be made without one."""
    workers: int | None = None
    """Processes; None: one for each core."""

    @property
    def folder(self) -> Path:
        """Folder of the set."""
        return self.out_dir / self.name

    @property
    def job(self) -> Job:
        """The part that workers need."""
        return Job(
            tokenizer=self.tokenizer,
            template=self.template,
            extra_ids=self.extra_ids,
            prefer_model_file=self.prefer_model_file,
            keys=self.keys,
            special_in_text=self.special_in_text,
            today=self.template_date or date.today(),
        )


def tokenize(request: TokenizeRequest, *, progress: ProgressCallback | None = None) -> TokenizedData:
    """Make the set that is asked for, or use the one that is there if it was made of the same.

    Raises DataError: bad rows; a set made of something else (without `retokenize`); a set without a manifest (without
    `trust_cache`); no data and no set. An interrupted call leaves nothing that looks like a set.
    """
    report = progress or (lambda _: None)
    job = request.job
    opened = job.open_tokenizer()
    if not request.data:
        return _use(request, opened)
    refuse_unreadable(request.data)
    recipe = _recipe(request, opened, _hash(request, report))
    if not request.retokenize and _holds_files(request.folder):
        return _reuse(request, opened, recipe)
    before = _inode(request.folder)
    with _lock(request, report):
        remove_left_overs(request.folder)
        made_meanwhile = _inode(request.folder) not in (None, before)
        if made_meanwhile or (not request.retokenize and _holds_files(request.folder)):
            return _reuse(request, opened, recipe)
        refuse_foreign_files(request.folder)
        make_set(
            request.folder,
            request.data,
            recipe,
            opened,
            job,
            workers=request.workers,
            document_index=request.document_index,
            report=report,
        )
        return open_tokenized(request.folder)


def _inode(folder: Path) -> int | None:
    """Tells a set from one that was put in its place."""
    return folder.stat().st_ino if folder.is_dir() else None


def wait_for_tokenized(folder: Path, *, timeout_seconds: float, poll_seconds: float = 2.0) -> TokenizedData:
    """Wait until another node has made a set that is not there yet. Raises DataError after the timeout."""
    end = time.monotonic() + timeout_seconds
    while not (folder / MANIFEST_NAME).is_file():
        if time.monotonic() >= end:
            raise DataError(
                f"{folder} did not appear within {timeout_seconds:.0f} s",
                hint="is --tokenized_data_dir on a file system that all nodes share? Is node 0 still tokenising?",
            )
        time.sleep(poll_seconds)
    return open_tokenized(folder)


@contextmanager
def _lock(request: TokenizeRequest, report: ProgressCallback) -> Iterator[None]:
    """Hold the set's lock; while another process has it, say so and wait."""
    from filelock import FileLock, Timeout

    try:
        request.out_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(request.out_dir / f".{request.name}.lock")
        began = time.monotonic()
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_SECONDS)
                break
            except Timeout:
                waited = time.monotonic() - began
                report(Progress(stage="wait", done_bytes=0, total_bytes=0, documents=0, seconds=waited))
    except OSError as error:
        if (found := trouble(error, request.out_dir)) is not None:
            raise DiskError(found.message, hint=found.hint, exit_code=ExitCode.DATA) from None
        raise DataError(
            f"{request.out_dir} cannot be written: {error.strerror or error}", hint="choose another --tokenized_data_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _hash(request: TokenizeRequest, report: ProgressCallback) -> tuple[InputFile, ...]:
    clock = Clock("hash", input_bytes(request.data), report)
    return hash_inputs(request.data, clock.tell)


def _recipe(request: TokenizeRequest, opened: OpenedTokenizer, inputs: tuple[InputFile, ...]) -> Recipe:
    return Recipe(
        inputs=inputs,
        tokenizer=opened.tokenizer.fingerprint,
        tokenizer_path=str(request.tokenizer),
        template=opened.template.name,
        template_sha256=_sha256(opened.template.jinja),
        keys=request.keys,
        bad_rows=request.bad_rows,
        special_in_text=request.special_in_text,
        template_date=opened.template.date,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _use(request: TokenizeRequest, opened: OpenedTokenizer) -> TokenizedData:
    """The set as it is, when no data is given: the tokenizer and the template must still be those of the set."""
    if not set_exists(request.folder):
        raise DataError(
            f"no data is given and {request.folder} holds no tokenised set",
            hint="give --data, or check --run_name and --tokenized_data_dir",
        )
    manifest = read_manifest(request.folder)
    if manifest is None and request.trust_cache:
        return trust(request.folder, opened)
    data = open_tokenized(request.folder)
    changed = tokenizer_differences(data.manifest, opened.tokenizer.fingerprint)
    if data.manifest.recipe is None and data.manifest.vocab_size != opened.tokenizer.vocab_size:
        changed.append("the tokenizer has another number of tokens than the one with which the set was trusted")
    changed += template_differences(data.manifest, opened.template.name, _sha256(opened.template.jinja))
    if changed:
        raise _stale(request.folder, changed, "give --data with --retokenize, or the --tokenizer and --template it has")
    return data


def _reuse(request: TokenizeRequest, opened: OpenedTokenizer, recipe: Recipe) -> TokenizedData:
    """The set that is there, if it was made of what is asked for now."""
    if not set_exists(request.folder):
        raise DataError(
            f"{request.folder} exists but holds no tokenised set",
            hint="choose another --run_name, or remove the folder",
        )
    if request.trust_cache and read_manifest(request.folder) is None:
        return trust(request.folder, opened)
    data = open_tokenized(request.folder)
    if request.trust_cache and data.manifest.recipe is None:
        return data
    if changed := differences(data.manifest, recipe):
        raise _stale(request.folder, changed, "tokenise again with --retokenize, or choose another --run_name")
    return data


def _stale(folder: Path, changed: list[str], hint: str) -> DataError:
    lines = "\n".join(f"  - {line}" for line in changed)
    return DataError(f"the tokenised set in {folder} was made of something else:\n{lines}", hint=hint)


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
