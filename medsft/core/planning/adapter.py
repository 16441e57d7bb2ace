"""What a run that trains an adapter trains, keeps and writes: numbers of parameters and bytes. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medsft.core.config.lora import B_SUFFIX, TRAINED_ROWS, LoraSpec
from medsft.core.models.config import ModelConfig
from medsft.core.models.nf4 import is_quantized, stored_bytes
from medsft.core.planning.layout import Layout, stage_shapes
from medsft.core.planning.trainable import trainable_shapes

BYTES = {"bf16": 2, "fp32": 4}
"""Of a number in these formats."""
_BY_COLUMNS = ("o_proj", "down_proj")
"""Layers of which a tensor-parallel rank has some columns, and columns of their A; of the others rows, and rows of their B."""
_GATHERED_LAYERS = 2
"""Frozen layers that are there whole at once with data parallel: the one that computes, and the next one, which is gathered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """An adapter, and the frozen model below it."""

    lora: LoraSpec
    base_precision: str
    """Format of the matrices of the frozen layers; what else is frozen has that of the computation."""
    rows: int
    """Rows of tokens that the base model did not have: they are trained whole."""

    def trained(self, model: ModelConfig) -> int:
        """Count the parameters that are trained."""
        return sum(math.prod(shape) for shape in trainable_shapes(model, self.lora, self.rows).values())

    def trained_on_rank(self, model: ModelConfig, layout: Layout, stage: int) -> int:
        """Count the trained parameters that a rank of a pipeline stage has.

        Of a pair one factor is divided over the tensor-parallel ranks and the other is whole on each; so are trained rows.
        Data-parallel ranks have all of both.
        """
        held = stage_shapes(model, layout.pp, stage)
        total = sum(self.rows * held[table][1] for table in TRAINED_ROWS if table in held)
        for name, shape in self.lora.shapes(model):
            module = name.rpartition(".lora_")[0]
            if f"{module}.weight" in held:
                divided = name.endswith(B_SUFFIX) != module.endswith(_BY_COLUMNS)
                total += math.ceil(math.prod(shape) / (layout.tp if divided else 1))
        return total

    def frozen_on_rank(self, model: ModelConfig, layout: Layout, stage: int, *, unit: int) -> tuple[int, int]:
        """Return the bytes of the frozen weights that a rank of a pipeline stage keeps, and of those that it gathers at a time.

        `unit` is the size of a number that is computed with. Data-parallel ranks divide the layers and gather them one after
        the other; the tables of tokens are whole on each.
        """
        tables, layers = self._frozen(model, layout, stage, unit)
        gathered = _GATHERED_LAYERS * max(layers.values()) if layout.dp > 1 else 0
        return math.ceil(tables + sum(layers.values()) / layout.dp), math.ceil(gathered)

    def layer_bytes(self, model: ModelConfig, layout: Layout, stage: int, *, unit: int) -> int:
        """Return the bytes of all frozen layers of a stage before data-parallel ranks divide them."""
        return math.ceil(sum(self._frozen(model, layout, stage, unit)[1].values()))

    def converted(self, model: ModelConfig, tp: int, *, unit: int) -> int:
        """Return the bytes of the largest frozen matrix in the computing format: of those in another, one at a time has it."""
        if BYTES.get(self.base_precision) == unit:
            return 0
        return math.ceil(unit * max(math.prod(shape) for name, shape in model.parameter_shapes() if is_quantized(name)) / tp)

    def kept_for_backward(self) -> int:
        """Return the numbers a token that the adapters of a layer keep for the backward pass: x A^T, as wide as the rank."""
        return len(self.lora.targets) * self.lora.rank

    def file_bytes(self, model: ModelConfig) -> int:
        """Return what the adapter takes on the disk in PEFT's format: fp32."""
        return 4 * self.trained(model)

    def _frozen(self, model: ModelConfig, layout: Layout, stage: int, unit: int) -> tuple[float, dict[str, float]]:
        """Return the bytes of a rank's frozen tables and last norm, and of each of its frozen layers, by number."""
        tables, layers = 0.0, dict[str, float]()
        for name, shape in stage_shapes(model, layout.pp, stage).items():
            size = self._frozen_bytes(name, shape, unit) / layout.tp
            if not name.startswith("model.layers."):
                tables += size
            else:
                number = name.split(".")[2]
                layers[number] = layers.get(number, 0) + size
        return tables, layers

    def _frozen_bytes(self, name: str, shape: tuple[int, ...], unit: int) -> int:
        if not is_quantized(name):
            return unit * math.prod(shape)
        if self.base_precision == "nf4":
            return stored_bytes(shape[0], shape[1])
        return BYTES[self.base_precision] * math.prod(shape)


def adapter_concerns(lora: LoraSpec | None, model: ModelConfig) -> list[str]:
    """Return that the rank is higher than a matrix can have, which is its smaller side: what is more learns nothing."""
    if lora is None:
        return []
    sides = {
        name.removesuffix(".weight").rpartition(".")[2]: min(shape)
        for name, shape in model.parameter_shapes()
        if len(shape) == 2
    }
    narrow = {target: sides[target] for target in lora.targets if sides.get(target, lora.rank) < lora.rank}
    if not narrow:
        return []
    least = min(narrow.values())
    named = ", ".join(target for target, side in narrow.items() if side == least)
    return [f"--lora_rank {lora.rank} is more than {named} can have, {least}: what is above learns nothing."]
