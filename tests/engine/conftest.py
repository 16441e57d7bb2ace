from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from medsft.core.engine.formats.source import WeightSource
from medsft.core.engine.nn.model import Decoder
from medsft.core.models.config import ModelConfig, from_hf_config

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A tiny model of one family, as its config.json would say it."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict)

    def raw(self) -> dict[str, Any]:
        return {"model_type": self.family, **_SIZES, **self.changes}

    def but(self, **changes: Any) -> Variant:
        return Variant(family=self.family, changes={**self.changes, **changes})

    def config(self) -> ModelConfig:
        return from_hf_config(self.raw(), where="config.json")

    def reference(self, seed: int = 0) -> torch.nn.Module:
        """The same model in transformers, with random norms and biases too."""
        config = AutoConfig.for_model(self.family, **{k: v for k, v in self.raw().items() if k != "model_type"})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                center = 1.0 if name.endswith("norm.weight") else 0.0
                parameter.copy_(center + 0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    def ours(self, reference: torch.nn.Module) -> Decoder:
        """Our own model with its weights."""
        model = Decoder(self.config())
        state = reference.state_dict()
        if self.config().tie_embeddings:
            del state["lm_head.weight"]
        model.load_state_dict(state)
        return model


VARIANTS = {
    "llama": Variant(family="llama"),
    "llama-tied": Variant(family="llama", changes={"tie_word_embeddings": True}),
    "llama-full-heads": Variant(family="llama", changes={"num_key_value_heads": 4}),
    "llama-wide-heads": Variant(family="llama", changes={"head_dim": 24}),
    "llama3": Variant(family="llama", changes={"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "llama-linear": Variant(family="llama", changes={"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": Variant(family="mistral", changes={"sliding_window": None}),
    "mistral-window": Variant(family="mistral", changes={"sliding_window": 7}),
    "qwen2": Variant(family="qwen2"),
    "qwen2-tied-window": Variant(
        family="qwen2",
        changes={"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "qwen3": Variant(family="qwen3"),
    "qwen3-tied": Variant(family="qwen3", changes={"tie_word_embeddings": True}),
}


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every kind of model in turn."""
    return request.param


@pytest.fixture
def tiny() -> Variant:
    """One small model, for tests that do not depend on the family."""
    return VARIANTS["llama"]


@pytest.fixture
def load() -> Callable[[WeightSource], Decoder]:
    """Build the model of a source, with every weight read from it."""

    def build(source: WeightSource) -> Decoder:
        with torch.device("meta"):
            model = Decoder(source.config)
        model.load_state_dict({name: source.read(name).float() for name in source.names()}, assign=True)
        return model

    return build
