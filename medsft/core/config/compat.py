"""What `--compat` changes: the places where medsft and the original recipe differ, in one table.

Code that differs asks `config.rules` for one field of `CompatRules`; nothing else compares `config.compat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class CompatRules:
    """How a run does what medsft and the original do differently. The defaults are medsft's own way."""

    # Documents
    special_in_text: str | None = None
    """Takes the place of `--special_in_text`."""
    prefers_tokenizer_model: bool = False
    """Of a folder with a `tokenizer.json` and a `tokenizer.model` the latter is read."""
    document_index: bool = True
    """A tokenized set lists its documents; the original's files leave that list empty."""
    withholds_documents: bool = False
    """Without `--val`, a part of the training set is validated on and another left out, see `order.hidden_split`."""

    knows_shares: bool = True
    """`--data FILE:SHARE` and `--val SHARE` are possible."""
    cuts_whole_turns: bool = True
    """`--truncate keep` cuts a conversation of several turns behind a whole one, not where `--seq` ends."""

    # What is trained
    knows_adapters: bool = True
    """`--adapter` is possible."""
    knows_8bit_moments: bool = True
    """`--optimizer adamw8bit` is possible."""

    # Order
    numpy_order: bool = False
    """Permutations come from one `numpy.random.RandomState`, not from a generator for each epoch."""
    seed_limit: int | None = None
    """The seed must be below this, where the generator takes no larger ones."""
    deals_in_order: bool = False
    """Ranks and micro-batches get equal blocks in the order of the batch; otherwise documents are dealt by length."""
    repeats_documents: bool = False
    """An iteration holds `--global_batch` documents even when the set has fewer."""

    # Schedule
    iterations_multiple: int | None = None
    """Iterations that follow from `--epochs` are rounded up to a multiple of this."""
    eval_interval: int | None = None
    """Iterations between validations where `--eval_interval` is not given; None chooses by the length of the run."""
    validates_epochs: bool = True
    """Validates before the first iteration and after each epoch, too."""
    keeps_best: bool = True
    """`--keep_best` and `--patience` are possible."""
    rate_counts_from: int = 1
    """Number of the first iteration in the learning-rate schedule."""

    # Model and loss
    vocab_multiple: int | None = None
    """The tables are padded to a multiple of this times tp. None: so that every valid tp divides them."""
    softmax_over_padding: bool = False
    """Padding rows of the output projection take part in the softmax."""
    loss_norm: str | None = None
    """Takes the place of `--loss_norm`."""
    loss_depends_on_layout: bool = False
    """The micro-batch and the padding are a part of the recipe: a resume keeps both."""
    new_token_init: str | None = None
    """Takes the place of `--new_token_init`."""
    remakes_rows: bool = True
    """Rows of control tokens that the base model never trained, and rows in its padding that new tokens take, are made anew."""


COMPAT_RULES: Mapping[str, CompatRules] = MappingProxyType(
    {
        "none": CompatRules(),
        "megatron-llm": CompatRules(
            special_in_text="control",
            prefers_tokenizer_model=True,
            document_index=False,
            withholds_documents=True,
            knows_shares=False,
            cuts_whole_turns=False,
            knows_adapters=False,
            knows_8bit_moments=False,
            numpy_order=True,
            seed_limit=2**32,
            deals_in_order=True,
            repeats_documents=True,
            iterations_multiple=10,
            eval_interval=100,
            validates_epochs=False,
            keeps_best=False,
            rate_counts_from=0,
            vocab_multiple=128,
            softmax_over_padding=True,
            loss_norm="microbatch",
            loss_depends_on_layout=True,
            new_token_init="copy_last",
            remakes_rows=False,
        ),
    }
)
"""The values of `--compat`. `megatron-llm` is the fine-tuning of meditron with Megatron-LLM."""
