"""Answers requests with a model: scores of continuations, and generated answers.

    python -m medsft.core.engine.commands.answer --model JSON --precision fp32|bf16 --ids N [--interactive] < REQUESTS > ANSWERS

Requests and answers are lines of JSON (`core.evaluation.requests`). All requests are read, and then answered in whatever
order is fastest. With --interactive each is answered when it comes, with a line {"token": id} for each token on the way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medsft.core.devices import cpu_multiplies_bf16
from medsft.core.engine.commands.entry_point import run_process
from medsft.core.engine.commands.out_of_memory import is_out_of_memory
from medsft.core.engine.formats.adapters import MergedSource, base_as_held, check_tied_tables, open_adapter
from medsft.core.engine.formats.open import open_source
from medsft.core.engine.formats.source import DTYPES, Slices, SourceAround, WeightSource
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.engine.infer.generation import Generator
from medsft.core.engine.infer.limits import limits_for
from medsft.core.engine.infer.scoring import score
from medsft.core.engine.kernels import cpu
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.train.base_weights import base_source
from medsft.core.engine.train.weights import load_weights
from medsft.core.evaluation.model import ModelSource, plan_of
from medsft.core.evaluation.requests import Generate, Generated, Request, Score, from_json, to_json
from medsft.core.models.adapter_folder import read_adapter
from medsft.errors import LaunchError


def load(model: ModelSource, precision: str, *, ids: int) -> Decoder:
    """Load a model to answer prompts with ids below `ids`, on the GPU where there is one; see `open_model`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source, dtype = open_model(model, precision, device, ids=ids)
    with torch.device("meta"):
        decoder = Decoder(source.config).to(dtype)
    decoder.to_empty(device=device).requires_grad_(False)
    load_weights(dict(decoder.named_parameters()), source)
    return decoder


def open_model(model: ModelSource, precision: str, device: torch.device, *, ids: int) -> tuple[WeightSource, torch.dtype]:
    """Return the weights of a model that answers prompts with ids below `ids`, and the format to compute in.

    Its tables get rows for tokens that the prompts hold and that it lacks, as a run begins with. A processor that multiplies
    fp32 faster than bf16 computes with the numbers of bf16 in fp32.
    """
    source = _source(model, ids)
    if precision == "bf16" and device.type == "cpu" and not cpu_multiplies_bf16():
        return _Rounded(source), torch.float32
    return source, DTYPES[precision]


def _source(model: ModelSource, ids: int) -> WeightSource:
    if model.begins is not None:
        begin = ResizedSource(base_source(plan_of(model.begins))[0], model.tokens)
        return begin if model.adapter is None else _with_adapter(model.adapter, begin, model.tokens)
    source = open_source(model.weights, iteration=model.iteration)
    rows = source.config.vocab_size
    if model.adapter is not None:
        return _with_adapter(model.adapter, source, model.tokens if ids > rows else rows)
    return ResizedSource(source, model.tokens) if rows > model.tokens or ids > rows else source


def _with_adapter(path: Path, base: WeightSource, rows: int) -> WeightSource:
    """Return a base with the adapter of a folder in it, its tables at least `rows` long."""
    folder = read_adapter(path)
    adapter = open_adapter(folder)
    if base.config.tie_embeddings:
        check_tied_tables(adapter, path)
    held = base_as_held(base, folder.base_precision)
    return MergedSource(ResizedSource(held, max(rows, folder.vocab_size(base.config))), adapter)


class _Rounded(SourceAround):
    """The numbers of bf16, whatever the weights are."""

    def read(self, name: str, slices: Slices | None = None) -> torch.Tensor:
        """Return a weight, or the part of it in `slices`."""
        return self._source.read(name, slices).to(torch.bfloat16)


def answer_all(model: ModelSource, precision: str, ids: int, requests: Sequence[Request]) -> None:
    """Answer requests in any order: a line for each. `ids` as in `load`."""
    decoder = load(model, precision, ids=ids)
    limits = limits_for(decoder)
    try:
        scores = [request for request in requests if isinstance(request, Score)]
        for scored in score(decoder, scores, most_tokens=limits.prompt_tokens):
            write_line(to_json(scored))
        prompts = [request for request in requests if isinstance(request, Generate)]
        decode = model.open_tokenizer().tokenizer.decode if any(prompt.stop_strings for prompt in prompts) else None
        for generated in Generator(decoder, limits, decode=decode).generate(prompts):
            write_line(to_json(generated))
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory() from None
        raise


def answer_each(model: ModelSource, precision: str, ids: int, lines: Iterable[bytes]) -> None:
    """Answer each prompt as it comes: a line for each token, and one for the answer."""
    decoder = load(model, precision, ids=ids)
    generator = Generator(decoder, limits_for(decoder), decode=model.open_tokenizer().tokenizer.decode)
    write_line({"ready": True})
    for line in lines:
        try:
            for found in generator.stream(from_json(json.loads(line))):
                write_line(to_json(found) if isinstance(found, Generated) else {"token": found})
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory() from None
            raise


def out_of_memory() -> LaunchError:
    """Return what a person is told who asks a model for which there is no memory."""
    hint = "Use --precision bf16, shorter prompts, for likelihoods more --tp or --pp, or a machine with more."
    return LaunchError("Out of memory while answering.", hint=hint)


def write_line(record: Mapping[str, Any]) -> None:
    """Write a record for the parent process."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="answer")
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--precision", choices=sorted(DTYPES), required=True)
    parser.add_argument("--ids", type=int, required=True, metavar="N", help="those of prompts are below N")
    parser.add_argument("--interactive", action="store_true")
    options = parser.parse_args(arguments)
    cpu.compile_ahead()
    model = ModelSource.from_json(options.model)
    if options.interactive:
        answer_each(model, options.precision, options.ids, sys.stdin.buffer)
    else:
        answer_all(model, options.precision, options.ids, [from_json(json.loads(line)) for line in sys.stdin.buffer])


if __name__ == "__main__":
    sys.exit(run_process(main))
