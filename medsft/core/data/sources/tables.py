"""Parquet, Arrow and Feather: tables in columns, read by pyarrow (the extra `parquet`).

file --record batches--> Arrow bytes of about a MiB --rows--> (row, values by column)

pyarrow is imported where it is used: nobody needs it for other files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from medsft.core.data.sources.base import BadRow, Block, Row
from medsft.core.data.sources.columns import shown
from medsft.core.data.sources.streams import refuse_ratio
from medsft.core.data.sources.table_values import json_values, text_bytes
from medsft.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

TableKind = Literal["a Parquet file", "an Arrow or Feather file", "an Arrow stream"]
_BLOCK_BYTES = 2**20
_MOST_ROWS = 2**10
"""Of a block. It bounds the memory for rows that are far longer than the others, or that a file repeats by a word."""


def table_kind(head: bytes) -> TableKind | None:
    """Tell by the first bytes of a file which kind of table it holds; None for none."""
    if head.startswith(b"PAR1"):
        return "a Parquet file"
    if head.startswith(b"ARROW1"):
        return "an Arrow or Feather file"
    if head.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(head[4:8], "little") < 2**24:
        return "an Arrow stream"  # a message's sign and length, as `datasets` writes
    return None


def table_source(path: Path, kind: TableKind) -> TableSource:
    """The rows of a table. Raises DataError without pyarrow, for a damaged file, and for columns with the same name."""
    source = TableSource(path, kind)
    repeated = [name for name, times in Counter(source.columns()).items() if times > 1]
    if repeated:
        raise DataError(f"{path}: several columns have the same name: {shown(repeated)}", hint="give each its own name")
    return source


@dataclass(frozen=True, slots=True)
class TableSource:
    """See `RowSource`. Rows are numbered from 1."""

    path: Path
    kind: TableKind

    def columns(self) -> list[str]:
        """The names of the columns. Raises DataError."""
        with self._reading():
            import pyarrow as pa
            from pyarrow.parquet import read_schema

            if self.kind == "a Parquet file":
                return list(read_schema(self.path).names)
            with pa.memory_map(str(self.path)) as file:
                reader = pa.ipc.open_stream(file) if self.kind == "an Arrow stream" else pa.ipc.open_file(file)
                return list(reader.schema.names)
        raise AssertionError

    def estimate(self) -> npt.NDArray[np.int64]:
        """The bytes of each row's texts, see `RowSource.estimate`."""
        sizes = [np.zeros(0, np.int64)]
        sizes += [of_batch for _, of_batch, _ in self._batches()]
        return np.concatenate(sizes)

    def blocks(self) -> Iterator[Block]:
        """Yield rows as Arrow streams, see `RowSource.blocks`."""
        number = 1
        for batch, sizes, bytes_read in self._batches():
            rows = max(1, batch.num_rows * _BLOCK_BYTES // max(1, int(sizes.sum())))
            for first in range(0, batch.num_rows, rows):
                part = _without_dictionaries(batch.slice(first, rows))
                yield Block(number, _to_bytes(part), "", bytes_read)
                number += part.num_rows

    def rows(self, block: Block) -> Iterator[Row]:
        """The rows of a block, see `RowSource.rows`."""
        import pyarrow as pa

        number = block.number
        with pa.ipc.open_stream(block.content) as reader:
            for batch in reader:
                for content in _rows(batch):
                    yield Row(number, content)
                    number += 1

    def place(self, number: int) -> str:
        """``FILE: row N``."""
        return f"{self.path}: row {number}"

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.int64], int]]:
        """Yield the table in parts, each with the bytes of its rows' texts and of the file so far. Raises DataError."""
        unpacked = 0
        with self._reading():
            size = self.path.stat().st_size
            for batch, share in self._parquet_batches() if self.kind == "a Parquet file" else self._arrow_batches():
                batch.validate()
                sizes = sum(map(text_bytes, batch.columns), np.zeros(batch.num_rows, np.int64))
                unpacked += int(sizes.sum())
                refuse_ratio(self.path, unpacked, size)
                yield batch, sizes, round(size * share)

    def _parquet_batches(self) -> Iterator[tuple[pa.RecordBatch, float]]:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.path, buffer_size=_BLOCK_BYTES, pre_buffer=False) as file:  # parts of a row group, not all of it
            meta = file.metadata
            size = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
            rows = max(1, min(_MOST_ROWS, meta.num_rows * _BLOCK_BYTES // max(1, size)))
            done = 0
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                done += batch.num_rows
                yield batch, done / max(1, meta.num_rows)

    def _arrow_batches(self) -> Iterator[tuple[pa.RecordBatch, float]]:
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as file:
            if self.kind == "an Arrow stream":
                for batch in pa.ipc.open_stream(file):
                    yield batch, file.tell() / file.size()
                return
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number), (number + 1) / reader.num_record_batches

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what pyarrow raises into messages for people."""
        damaged = DataError(f"{self.path} is {self.kind} that ends early or is damaged", hint="copy the file again")
        try:
            import pyarrow as pa
        except ImportError:
            raise DataError(
                f"{self.path} is {self.kind}, and the package that reads it is not installed",
                hint="pip install 'medsft[parquet]'",
            ) from None
        try:
            yield
        except pa.ArrowException:
            raise damaged from None
        except OSError as error:
            if error.errno is None:  # how pyarrow says that a part of the file does not unpack
                raise damaged from None
            reason = error.strerror or type(error).__name__
            raise DataError(f"{self.path}: cannot be read: {reason}", hint="check the paths after --data and --val") from None


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same with repeated values of a column written out, so that some of the rows do not carry those of all."""
    import pyarrow as pa

    columns = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, object] | BadRow]:
    """The rows of a batch; where a value cannot be used, each row is looked at alone."""
    import pyarrow as pa

    names = batch.schema.names
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        if batch.num_rows == 1:
            yield BadRow("broken UTF-8")
            return
        for number in range(batch.num_rows):
            yield from _rows(batch.slice(number, 1))
        return
    if not names:
        yield from ({} for _ in range(batch.num_rows))
    for values in zip(*map(json_values, batch.columns), strict=True):
        yield dict(zip(names, values, strict=True))
