"""Look into a torch checkpoint file without torch: its structure, its plain values and the shapes of its tensors.

A `.pt` file is a zip whose `data.pkl` is a pickle. A pickle is a program, so nothing of it is trusted: every name it asks for
is either on the list below, and is then answered with a harmless stand-in of ours, or the file is refused with that name.
"""

from __future__ import annotations

import argparse
import collections
import enum
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.errors import MismatchError


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
    return TensorInfo(tuple(size), storage if isinstance(storage, str) else "unknown")


def _typed_tensor(rebuild: Any, _type: Any, args: Any, _state: Any) -> Any:
    return rebuild(*args)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _path(*parts: str) -> str:
    return "/".join(parts)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for `{module}.{name}`") from None

    def persistent_load(self, pid: Any) -> Any:
        """Answer `("storage", type, key, device, length)` with the name of the element type."""
        return pid[1]


def check_whole(path: Path) -> None:
    """Raise `MismatchError` when the end of a torch zip file, where its list of contents stands, is missing."""
    if not zipfile.is_zipfile(path):
        raise _truncated(path, "no zip directory at its end")


def look(path: Path) -> Any:
    """Return what `torch.save` was given, with a `TensorInfo` for each tensor. Reads no tensor data and executes nothing.

    Raises `MismatchError` for a file that is truncated or no torch zip file, and for one that names anything unexpected.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if member is None:
                raise MismatchError(f"{path}: a zip file, but not one that torch.save wrote (no data.pkl in it).")
            payload = archive.read(member)
    except FileNotFoundError:
        raise MismatchError(f"{path}: no such file.") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise _truncated(path, str(error)) from None
    try:
        return _Unpickler(io.BytesIO(payload)).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise MismatchError(
            f"{path}: refused; {error}.",
            hint="Only tensors, plain values and the argument classes of Megatron-LLM are read; nothing was executed.",
        ) from None


def _truncated(path: Path, reason: str) -> MismatchError:
    return MismatchError(
        f"{path}: truncated, or not a file of torch.save ({reason}).",
        hint="Copy it again; compare its size with the original's. A file from before torch 1.6 has to be saved again.",
    )
