"""Look into a torch checkpoint file without torch: its structure, its plain values and the shapes of its tensors.

A `.pt` file is a zip whose `data.pkl` is a pickle. A pickle is a program, so nothing of it is trusted: every name it asks for
is either on the list below, and is then answered with a harmless stand-in of ours, or the file is refused with that name.
What a pickle or a zip may take of memory and time is bounded before it is unpacked.
"""

from __future__ import annotations

import argparse
import collections
import enum
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from medsft.core.models.checked_json import plain, refuse_pointer
from medsft.errors import MismatchError

_LARGEST_PICKLE = 64 * 2**20
"""Bytes unpacked. That of a 70B rank with its optimizer has some 300 kB: descriptions of tensors, and the arguments."""
_LARGEST_DIRECTORY = 32 * 2**20
"""Bytes of a zip's list of its files: room for some 300,000, where a checkpoint has one for each tensor."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of which only the description was read."""

    shape: tuple[int, ...]
    dtype: str
    """torch's name, like `bfloat16`."""


class PositionEmbeddingType(enum.Enum):
    """Stand-in for Megatron-LLM's enum of the same name."""

    rotary = 1
    absolute = 2


class ModelType(enum.Enum):
    """Stand-in for Megatron-LLM's enum of the same name."""

    encoder_or_decoder = 1
    encoder_and_decoder = 2


class Opaque:
    """Takes the place of a value nobody here looks at (random states, say), whatever it is made of."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
MEGATRON_ENUMS = {"PositionEmbeddingType": PositionEmbeddingType, "ModelType": ModelType}


def _tensor(storage: Any, _offset: int, size: Any, *_: Any) -> TensorInfo:
    shape = tuple(size)
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        raise pickle.UnpicklingError("a tensor's shape is not one")
    return TensorInfo(shape, storage if isinstance(storage, str) else "unknown")


def _ordered_dict(*items: Any) -> collections.OrderedDict[Any, Any]:
    """torch fills its dictionaries entry by entry, whose keys are looked at."""
    if items:
        raise pickle.UnpicklingError("a dictionary that is not filled as torch does")
    return collections.OrderedDict()


def _typed_tensor(rebuild: Any, _type: Any, args: Any, _state: Any) -> Any:
    return rebuild(*args)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _path(*parts: str) -> str:
    return "/".join(parts)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _typed_tensor,
    ("torch", "Tensor"): Opaque,
    ("torch.nn.parameter", "Parameter"): Opaque,
    ("torch", "Size"): tuple,
    ("torch.storage", "UntypedStorage"): "uint8",
    ("pathlib", "PosixPath"): _path,
    ("_codecs", "encode"): Opaque,
    ("numpy", "ndarray"): Opaque,
    ("numpy", "dtype"): Opaque,
    ("numpy.dtypes", "UInt32DType"): Opaque,
    **{
        (module, name): Opaque
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    },
    **{("torch", storage): dtype for storage, dtype in STORAGE_DTYPES.items()},
    **{("torch", dtype): dtype for dtype in STORAGE_DTYPES.values()},
    **{("megatron.model.enums", name): stand_in for name, stand_in in MEGATRON_ENUMS.items()},
}


_PythonUnpickler: Any = pickle._Unpickler


def _refuse_opcode(_: Any) -> None:
    raise pickle.UnpicklingError("it uses a part of pickle that torch.save does not")


class _Unpickler(_PythonUnpickler):
    """Python's own reader and not the one in C, because the latter can be made to take any memory and time.

    There, a large number for the memo is memory at once; and the hash of a key that is a tuple of tuples is computed over all
    of it, however often a part is shared. Here the memo is a dictionary, and keys are plain.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_PythonUnpickler.dispatch)
    for _opcode in (pickle.BYTEARRAY8, pickle.FROZENSET, pickle.ADDITEMS, pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2):
        dispatch[_opcode[0]] = _refuse_opcode
    dispatch[pickle.EXT4[0]] = _refuse_opcode

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for `{module}.{name}`") from None

    def persistent_load(self, pid: Any) -> Any:
        """Answer `("storage", type, key, device, length)` with the name of the element type."""
        return pid[1]

    def load_setitem(self) -> None:
        """Put one entry into a dictionary."""
        _check_keys([self.stack[-2]])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Put the entries on the stack into a dictionary."""
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        """Make a dictionary of what is on the stack."""
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_build(self) -> None:
        """Give an object its state: one of ours, never a class or a function, which all files share."""
        if not isinstance(self.stack[-2], (argparse.Namespace, collections.OrderedDict, Opaque)):
            raise pickle.UnpicklingError("it changes something that is no object of its own")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict


def _check_keys(keys: Iterable[Any]) -> None:
    if not all(key is None or isinstance(key, (str, int, float, bytes)) for key in keys):
        raise pickle.UnpicklingError("a key of a dictionary is no plain value")


def check_whole(path: Path) -> None:
    """Raise `MismatchError` when the end of a torch zip file, where its list of contents stands, is missing."""
    try:
        whole = zipfile.is_zipfile(path)
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if not whole:
        raise _truncated(path, "no zip directory at its end")


def look(path: Path) -> Any:
    """Return what `torch.save` was given, with a `TensorInfo` for each tensor. Reads no tensor data and executes nothing.

    Raises `MismatchError` for a file that is truncated or no torch zip file, for one that names anything unexpected, and
    for one that would unpack to more than any checkpoint holds.
    """
    try:
        payload = _payload(path)
    except FileNotFoundError:
        raise MismatchError(f"{path}: no such file.") from None
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise _truncated(path, str(error)) from None
    try:
        return _Unpickler(io.BytesIO(payload)).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else f"damaged ({type(error).__name__})"
        raise MismatchError(
            f"{path}: refused; {plain(reason)}.",
            hint="Only tensors, plain values and the argument classes of Megatron-LLM are read; nothing was executed.",
        ) from None


def _payload(path: Path) -> bytes:
    """Return the pickle in a zip file of `torch.save`."""
    with path.open("rb") as file:
        start = file.read(128)
        refuse_pointer(path, start)
        if not start.startswith(b"PK"):
            old = start.startswith((b"\x80\x02\x8a\nl\xfc\x9c", b"\x80\x02}", b"\x80\x02c"))
            raise _truncated(path, "in the format of torch before 1.6" if old else "it does not begin as a zip file")
    if _directory_bytes(path) > _LARGEST_DIRECTORY:
        raise MismatchError(f"{path}: a zip of more files than any checkpoint has.")
    with zipfile.ZipFile(path) as archive:
        member = next((info for info in archive.infolist() if info.filename.endswith("/data.pkl")), None)
        if member is None:
            raise MismatchError(f"{path}: a zip file, but not one that torch.save wrote (no data.pkl in it).")
        with archive.open(member) as stream:
            payload = stream.read(_LARGEST_PICKLE + 1)
    if len(payload) > _LARGEST_PICKLE:
        raise MismatchError(f"{path}: its description takes more than {_LARGEST_PICKLE:,} bytes, which no checkpoint needs.")
    return payload


def _directory_bytes(path: Path) -> int:
    """Return how long a zip's list of its files is, before it is read (APPNOTE 4.3.14 and 4.3.16)."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - (1 << 16) - 128))
        tail = file.read()
    end, wide = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    length = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    in_64_bits = length == 0xFFFFFFFF and wide >= 0
    return int.from_bytes(tail[wide + 40 : wide + 48], "little") if in_64_bits else length


def _truncated(path: Path, reason: str) -> MismatchError:
    return MismatchError(
        f"{path}: truncated, or not a file of torch.save ({reason}).",
        hint="Copy it again; compare its size with the original's. A file from before torch 1.6 has to be saved again.",
    )
