"""The weight files of a Hugging Face folder, looked at without torch: are they all there, whole, and those of the model?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

from medsft.core.models import pickles
from medsft.core.models.checked_json import not_a_file, plain, read_object, refuse_pointer, shown
from medsft.core.models.config import ModelConfig
from medsft.core.models.safetensors import BITS, StoredTensor, read_header
from medsft.core.models.tensors import EMBEDDING, OUTPUT, check_complete, check_left_over, refuse_quantized_names
from medsft.errors import MismatchError

STEMS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, single or with an index; the first kind that is there is read."""
PLAIN = ("F64", "F32", "F16", "BF16")
"""Types of weights that are plain numbers, by safetensors' names."""
_TORCH_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"} | {
    f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)
}
_ELSEWHERE = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "consolidated.safetensors": "Mistral's own format",
    "consolidated.00.pth": "Meta's own format",
    "model.onnx": "ONNX",
}
_COMPARED_BYTES = 1 << 16
_COMPARED_PLACES = 64


def find_weight_files(folder: Path) -> list[Path]:
    """Return the weight files: those that an index names, or a single one.

    Raises `MismatchError` when there are none, when some are missing, or when the index is none.
    """
    for stem in STEMS:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _indexed(folder, index)
        if (folder / stem).is_file():
            return [folder / stem]
    raise MismatchError(
        f"{folder}: a config.json, but no weights (model.safetensors) beside it{weights_instead(folder)}.",
        hint="Download or copy the whole folder again.",
    )


def look_at_weights(files: Iterable[Path], config: ModelConfig, *, where: str) -> tuple[str, ...]:
    """Check that files hold the weights of a model, as plain numbers and whole; return what they hold beside it, as warnings.

    Raises `MismatchError`, naming the file or the tensor, for what is cut, damaged, quantized, missing, of another shape, or
    left out though it changes what the model computes.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        found |= describe_file(path)
    refuse_quantized_names(found, where=where)
    shapes = {name: tensor.shape for name, tensor in found.items()}
    wanted = [name for name, _ in config.parameter_shapes()]
    other = next((found[name] for name in wanted if name in found and found[name].dtype not in PLAIN), None)
    if other is not None:
        raise MismatchError(
            f"{other.file}: holds weights as {plain(other.dtype)}: a quantized model. Fine-tuning needs bf16, fp16 or fp32.",
            hint="Use the model that it was made from.",
        )
    check_complete(config, shapes, where=where)
    warnings = check_left_over(config, shapes, where=where, is_zero=lambda name: _is_zero(found[name]))
    if config.tie_embeddings and OUTPUT in found and _differ(found[EMBEDDING], found[OUTPUT]):
        raise MismatchError(tied_but_different(where), hint=TIED_HINT)
    return warnings


def describe_file(path: Path) -> Mapping[str, StoredTensor]:
    """Return the tensors of one file of safetensors, or of `torch.save`, by name. Raises `MismatchError` for a damaged one."""
    return read_header(path) if path.suffix == ".safetensors" else _described(path)


def tied_but_different(where: str) -> str:
    """Return the message for a model whose output table is its embedding by its description, but not in its files."""
    return (
        f"{where}: config.json says tie_word_embeddings, so {EMBEDDING} is the output table too; but the files hold another "
        f"{OUTPUT}, which would be left out."
    )


TIED_HINT = "Set tie_word_embeddings to false in config.json if the model was trained with both tables."


def _indexed(folder: Path, index: Path) -> list[Path]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise MismatchError(f"{index}: damaged; no weight_map in it.", hint="Copy it again.")
    names = {name if isinstance(name, str) else "" for name in places.values()}
    odd = next((name for name in names if not name or Path(name).name != name or "\0" in name), None)
    if odd is not None:
        raise MismatchError(f"{index}: damaged; {shown(odd)} is not the name of a file beside it.", hint="Copy it again.")
    try:
        missing = sorted(name for name in names if not (folder / name).is_file())
    except OSError as error:  # a name that is too long
        raise MismatchError(f"{index}: damaged; {error.strerror}.", hint="Copy it again.") from None
    if missing:
        raise MismatchError(
            f"{folder}: {len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:4])}.",
            hint="Download or copy them again.",
        )
    return [folder / name for name in sorted(names)]


def weights_instead(folder: Path) -> str:
    """Say which weights are there instead, or why those that are there cannot be read."""
    shards = sorted(path.name for path in islice(folder.glob("model-*-of-*.safetensors"), 1))
    if shards:
        return f": {shards[0]} is there, but not the index model.safetensors.index.json"
    other = next((kind for name, kind in _ELSEWHERE.items() if (folder / name).exists()), None)
    if other:
        return f", only weights in {other}, which is not read: take the files in Hugging Face's format"
    odd = next((stem for stem in STEMS if (folder / stem).exists()), None)
    if odd:
        return f"; {odd} is {not_a_file((folder / odd).stat())}"
    single = sorted(path.name for path in islice(folder.glob("*.safetensors"), 2))
    return f"; {shown(single[0])} has another name" if len(single) == 1 else ""


@lru_cache(maxsize=64)
def _described_once(path: Path, _size: int, _mtime_ns: int) -> Mapping[str, StoredTensor]:
    with path.open("rb") as file:
        refuse_pointer(path, file.read(128))
    content = pickles.look(path)
    if not isinstance(content, Mapping) or not any(isinstance(value, pickles.TensorInfo) for value in content.values()):
        raise MismatchError(f"{path}: holds no weights by name, as torch.save of a model's state_dict() does.")
    tensors = {
        name: value for name, value in content.items() if isinstance(value, pickles.TensorInfo) and isinstance(name, str)
    }
    return {name: StoredTensor(path, _TORCH_NAMES.get(info.dtype, info.dtype), info.shape) for name, info in tensors.items()}


def _described(path: Path) -> Mapping[str, StoredTensor]:
    """Return the tensors of a file of `torch.save`."""
    try:
        status = path.stat()
        return _described_once(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read: {error.strerror or error}.") from None


def _is_zero(tensor: StoredTensor) -> bool:
    if tensor.start is None or tensor.dtype not in BITS:
        return False
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        return not any(file.read(tensor.bytes))


def _differ(first: StoredTensor, second: StoredTensor) -> bool:
    """Tell whether two tables hold other numbers, from places spread over them: training leaves no stretch as it was."""
    if first.start is None or second.start is None:
        return False  # of a pickle; the engine compares them
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return first.shape != second.shape
    last = max(0, first.bytes - _COMPARED_BYTES)
    places = sorted({last * place // _COMPARED_PLACES for place in range(_COMPARED_PLACES + 1)})
    with first.file.open("rb") as one, second.file.open("rb") as other:
        for place in places:
            one.seek(first.start + place)
            other.seek(second.start + place)
            size = min(_COMPARED_BYTES, first.bytes - place)
            if one.read(size) != other.read(size):
                return True
    return False
