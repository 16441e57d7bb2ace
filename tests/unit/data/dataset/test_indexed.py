from __future__ import annotations

import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsft.core.data.dataset.indexed import IndexedReader, IndexedWriter, bin_path, idx_path, token_dtype
from medsft.errors import DataError

Documents = list[list[int]]


def _write(prefix: Path, documents: Documents, dtype: str = "<u2", *, document_index: bool = True) -> None:
    with IndexedWriter(prefix, dtype, document_index=document_index) as writer:
        for document in documents:
            writer.add(np.array(document, np.int64), np.array([len(document)]))
        writer.close()


def _expected_files(documents: Documents, code: int, letter: str, closed: range) -> tuple[bytes, bytes]:
    """The two files, spelled out number by number from the description of the format; `closed` is the document index."""
    sizes = [len(document) for document in documents]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(documents), len(closed))
    index += b"".join(struct.pack("<i", size) for size in sizes)
    offset = 0
    for size in sizes:
        index += struct.pack("<q", offset)
        offset += size * struct.calcsize(letter)
    index += struct.pack(f"<{len(closed)}q", *closed)
    return b"".join(struct.pack(f"<{letter}", number) for document in documents for number in document), index


@pytest.mark.parametrize(("dtype", "code", "letter"), [("<u2", 8, "H"), ("<i4", 4, "i")])
@given(documents=st.lists(st.lists(st.integers(0, 65535), max_size=9), max_size=9), document_index=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_files_are_byte_for_byte_the_format_and_read_back(
    tmp_path: Path, dtype: str, code: int, letter: str, documents: Documents, document_index: bool
) -> None:
    prefix = tmp_path / "a.set-text"
    _write(prefix, documents, dtype, document_index=document_index)
    content, index = _expected_files(documents, code, letter, range(len(documents) + 1 if document_index else 1))
    assert bin_path(prefix).read_bytes() == content
    assert idx_path(prefix).read_bytes() == index
    reader = IndexedReader(prefix)
    assert [reader[number].tolist() for number in range(len(reader))] == documents
    assert reader.sizes.tolist() == [len(document) for document in documents]
    assert reader.span(1, len(documents)).tolist() == list(chain.from_iterable(documents[1:]))
    assert reader.starts_follow_sizes()


def test_megatron_core_finds_the_end_of_every_document(tmp_path: Path) -> None:
    """Its reader asserts that the last entry of the document index is the number of sequences."""
    _write(tmp_path / "x", [[1, 2], [3], []])
    index = idx_path(tmp_path / "x").read_bytes()
    sequences, entries = struct.unpack_from("<QQ", index, 18)
    closed = np.frombuffer(index, "<i8", count=entries, offset=34 + 12 * sequences)
    assert closed.tolist() == [0, 1, 2, 3]
    assert closed[-1] == sequences
    assert len(index) == 34 + 12 * sequences + 8 * entries


def test_a_document_is_a_view_of_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "x", [[1, 2], [3]])
    reader = IndexedReader(tmp_path / "x")
    assert np.shares_memory(reader[0], reader.span(0, 2))
    with pytest.raises(ValueError, match="read-only"):
        reader[0][0] = 1


def test_sizes_must_add_up(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", "<u2") as writer, pytest.raises(ValueError, match="add up"):
        writer.add(np.array([1, 2]), np.array([1]))


def test_an_exception_leaves_no_index(tmp_path: Path) -> None:
    def interrupted() -> None:
        with IndexedWriter(tmp_path / "x", "<u2") as writer:
            writer.add(np.array([1, 2]), np.array([2]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(DataError, match=r"x\.idx is missing"):
        IndexedReader(tmp_path / "x")


@pytest.mark.parametrize(
    ("ending", "change", "message"),
    [
        (".idx", lambda content: content[:-1], "cut off or damaged"),
        (".idx", lambda content: content[:20], "not an index of tokenized data, or is cut off"),
        (".idx", lambda content: b"", "not an index"),
        (".idx", lambda content: b"PARQUET" + content[7:], "not an index"),
        (".idx", lambda content: b"TNTIDX\x00\x00" + content[8:], "old TNTIDX format"),
        (".idx", lambda content: content[:9] + b"\x02" + content[10:], "unknown version or number type"),
        (".idx", lambda content: content[:17] + b"\x63" + content[18:], "unknown version or number type"),
        (".bin", lambda content: content[:-2], "has 4 bytes where its index says 6"),
        (".bin", lambda content: content + b"x", "has 7 bytes where its index says 6"),
    ],
)
def test_damage_is_a_clear_error(tmp_path: Path, ending: str, change: object, message: str) -> None:
    _write(tmp_path / "x", [[1, 2], [3]])
    path = tmp_path / f"x{ending}"
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        IndexedReader(tmp_path / "x")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(32019, "<u2"), (65499, "<u2"), (65500, "<i4"), (151_936, "<i4")])
def test_number_type_follows_the_vocabulary(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)
