"""The format nf4 (QLoRA, Dettmers et al. 2023) for frozen matrices: constants, blocks, and what it takes in memory. No torch.

Every number of a matrix [rows, columns] is one of 16 constants, which are quantiles of a normal distribution, times the largest
absolute value of its block. A block is 64 neighbors of a row; the last block of a row is shorter where 64 does not divide the
columns. (Elsewhere blocks lie along the flattened matrix. Where 64 divides the columns, as in every published model of these
families, both are the same.) So a rank that holds some rows, or some columns, has the same numbers as one that holds all.

The largest values are stored in int8 (double quantization): of 256 blocks, in the order of rows, the middle between their least
and their greatest in fp32, and a 254th of the distance. QLoRA takes the mean in place of the middle, and 8-bit floats; this is
nearer (half the error that bitsandbytes adds, on normal numbers), and no sum depends on an order.
"""

from __future__ import annotations

from medsft.core.config.lora import TARGETS

CONSTANTS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""QLoRA, appendix E; in fp32 those of bitsandbytes. A code is a number's place here."""
ZERO = CONSTANTS.index(0.0)
BLOCK = 64
"""Neighbors of a row that share a largest absolute value."""
GROUP = 256
"""Blocks that share the fp32 numbers by which their largest values are read."""


def is_quantized(name: str) -> bool:
    """Tell whether the weight of this Hugging Face name is held in nf4 where a base is: a matrix of a decoder layer.

    Norms, biases, the embedding and the output projection are not.
    """
    module = name.removesuffix(".weight")
    return module != name and module.startswith("model.layers.") and module.rpartition(".")[2] in TARGETS


def blocks_of_row(columns: int) -> int:
    """Return the number of blocks in a row of so many columns."""
    return -(-columns // BLOCK)


def stored_bytes(rows: int, columns: int) -> int:
    """Return what a matrix takes in nf4, in bytes: 4.13 bits a number where 64 divides `columns`."""
    blocks = rows * blocks_of_row(columns)
    return rows * -(-columns // 2) + blocks + 8 * -(-blocks // GROUP)
