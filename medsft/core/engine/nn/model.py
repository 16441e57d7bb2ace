"""The decoder of the Llama family, driven by `ModelConfig`. It knows nothing of parallelism.

Modules and parameters bear the names of Hugging Face's checkpoints. The input is one token stream [T] (see
`Sequences`), so activations are [T, hidden] and there is neither a batch dimension nor padding. How parallelism fits
around it:

- tensor parallel: projections are `nn.Linear`; the number of heads is what their (local) output holds;
- FSDP: each `DecoderLayer` is one unit, entered through its `forward`;
- pipeline: a `Decoder` can hold any contiguous range of layers, under their global indices.
"""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsft.core.engine.nn.adapters import Adapter, project_together, projection
from medsft.core.engine.nn.attention import Sequences
from medsft.core.engine.nn.fused import rms_norm, rotate_queries_and_keys, swiglu
from medsft.core.engine.nn.recompute import recompute_in_backward
from medsft.core.engine.nn.rope import Rotary, inverse_frequencies, rotary
from medsft.core.engine.nn.trained_rows import HeldRows, OutputProjection, TokenEmbedding
from medsft.core.models.config import ModelConfig

_INIT_STD = 0.02


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the division is done in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., size]; the result has the dtype of x."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, and per-head norms where the family has them."""

    def __init__(self, config: ModelConfig, adapter: Adapter | None = None) -> None:
        super().__init__()
        hidden, self.head_dim, self.window = config.hidden_size, config.head_dim, config.sliding_window
        q_size, kv_size = config.num_heads * self.head_dim, config.num_kv_heads * self.head_dim
        self.q_proj = projection("q_proj", hidden, q_size, bias=config.attention_bias, adapter=adapter)
        self.k_proj = projection("k_proj", hidden, kv_size, bias=config.attention_bias, adapter=adapter)
        self.v_proj = projection("v_proj", hidden, kv_size, bias=config.attention_bias, adapter=adapter)
        self.o_proj = projection("o_proj", q_size, hidden, adapter=adapter)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, tables: Rotary, sequences: Sequences) -> Tensor:
        """Mix the tokens of each document: x [T, hidden] to [T, hidden]."""
        q, k, v = map(self._heads, project_together(x, (self.q_proj, self.k_proj, self.v_proj)))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = sequences.attend(*rotate_queries_and_keys(q, k, *tables), v, self.window)
        return self.o_proj(mixed.flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        # -1 and not num_heads: under tensor parallel only this rank's heads are here.
        return x.view(x.shape[0], -1, self.head_dim)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, adapter: Adapter | None = None) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = projection("gate_proj", hidden, inner, adapter=adapter)
        self.up_proj = projection("up_proj", hidden, inner, adapter=adapter)
        self.down_proj = projection("down_proj", inner, hidden, adapter=adapter)

    def forward(self, x: Tensor, *, lean: bool = False) -> Tensor:
        """Transform each token of x [T, hidden] on its own; `lean` keeps gate and up for the backward, not their product."""
        gate, up = project_together(x, (self.gate_proj, self.up_proj))
        product = swiglu(gate, up)
        with recompute_in_backward(product, partial(swiglu, gate.detach(), up.detach())) if lean else nullcontext():
            return self.down_proj(product)


class DecoderLayer(nn.Module):
    """Attention and MLP, each after a norm and added to what came in.

    `recompute` says what is computed again in the backward pass instead of kept: `none` (nothing that takes a matrix product),
    `selective` (the MLP, which keeps most and costs least), or `full` (everything but what came in).
    """

    def __init__(self, config: ModelConfig, adapter: Adapter | None = None) -> None:
        super().__init__()
        self.recompute = "none"
        self.frozen = adapter is not None
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, adapter)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, adapter)

    def forward(self, x: Tensor, tables: Rotary, sequences: Sequences) -> Tensor:
        """Return x [T, hidden] one layer on."""
        if self.recompute == "full" and torch.is_grad_enabled():
            return checkpoint(self._forward, x, tables, sequences, use_reentrant=False)
        return self._forward(x, tables, sequences)

    def _forward(self, x: Tensor, tables: Rotary, sequences: Sequences) -> Tensor:
        normed = self.input_layernorm(x)
        with self._without(normed, self.input_layernorm, x):
            x = x + self.self_attn(normed, tables, sequences)
        if self.recompute == "selective" and torch.is_grad_enabled():
            return x + checkpoint(self._feed_forward, x, use_reentrant=False)
        return x + self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        normed = self.post_attention_layernorm(x)
        with self._without(normed, self.post_attention_layernorm, x):
            return self.mlp(normed, lean=self.recompute == "none")

    def _without(self, normed: Tensor, norm: nn.Module, x: Tensor) -> AbstractContextManager[None]:
        """Keep autograd from saving `normed`, which is `norm(x)`, where weights are frozen and memory is what is short.

        An adapter leaves little else to save: without this the outputs of norms are a sixth of what a layer keeps.
        """
        if not self.frozen or self.recompute != "none":
            return nullcontext()
        return recompute_in_backward(normed, partial(norm, x.detach()))


class Trunk(nn.Module):
    """Everything but the output projection: what Hugging Face keeps under `model.`."""

    def __init__(self, config: ModelConfig, layers: range, *, embed: bool, norm: bool, adapter: Adapter | None = None) -> None:
        super().__init__()
        rows = adapter.rows if adapter else ()
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size, rows) if embed else None
        # A dictionary and not a list, so that a pipeline stage keeps the layers' global numbers in their names.
        self.layers = nn.ModuleDict({str(index): DecoderLayer(config, adapter) for index in layers})
        self.norm = RMSNorm(config.hidden_size, config.norm_eps) if norm else None


class Decoder(nn.Module):
    """A model, or the part of it that one pipeline stage holds.

    `layers` are the global indices held here (all by default); `first` adds the embedding in front, `last` the final norm
    and the output projection. A last stage of a model with tied embeddings that is not also the first has a copy of
    `model.embed_tokens.weight` for its output: whoever trains it adds up both gradients. With an `adapter` all weights of the
    base model are frozen.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        layers: range | None = None,
        first: bool = True,
        last: bool = True,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.adapter = adapter
        self.first = first
        held = range(config.num_layers) if layers is None else layers
        self.model = Trunk(config, held, embed=first or (last and config.tie_embeddings), norm=last, adapter=adapter)
        self.lm_head: nn.Linear | None = None
        if last and not config.tie_embeddings:
            hidden, vocab, rows = config.hidden_size, config.vocab_size, adapter.rows if adapter else ()
            self.lm_head = OutputProjection(hidden, vocab, rows) if rows else nn.Linear(hidden, vocab, bias=False)
        self._frequencies: dict[torch.device, Tensor] = {}

    def forward(self, inputs: Tensor, sequences: Sequences) -> Tensor:
        """Return hidden states [T, hidden], after the final norm on the last stage.

        `inputs` are token ids [T] on the first stage and the previous stage's hidden states on the others.
        """
        trunk = self.model
        hidden = trunk.embed_tokens(inputs) if self.first and trunk.embed_tokens is not None else inputs
        positions = sequences.position_ids
        tables = rotary(self._frequencies_on(positions.device), positions, hidden.dtype)
        for layer in trunk.layers.values():
            hidden = layer(hidden, tables, sequences)
        return hidden if trunk.norm is None else trunk.norm(hidden)

    def _frequencies_on(self, device: torch.device) -> Tensor:
        """Return the frequencies of rotation on a device: copied there once, for a copy in each pass would wait for the GPU."""
        if device not in self._frequencies:
            self._frequencies[device] = inverse_frequencies(self.config).to(device)
        return self._frequencies[device]

    def logits(self, hidden: Tensor) -> Tensor:
        """Project `hidden` [N, hidden] of the last stage onto the vocabulary: [N, vocab]."""
        return F.linear(hidden, self.head_weight()) if self.lm_head is None else self.lm_head(hidden)

    def head_weight(self) -> Tensor:
        """Return the output projection [vocab, hidden] of a last stage: the embedding itself where they are tied."""
        if self.lm_head is not None:
            return self.lm_head.weight
        assert self.model.embed_tokens is not None, "not a last stage"
        return self.model.embed_tokens.weight

    def trained_head_rows(self) -> HeldRows | None:
        """Return the rows of the output projection that are trained while the rest is frozen; None without such."""
        table = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return table.held_rows() if isinstance(table, (TokenEmbedding, OutputProjection)) else None

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill with random numbers that depend on (seed, parameter name) only, so that stages agree with the whole."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * _INIT_STD)
