r"""Scores continuations with a model that is divided over processes: one rank of them, on one machine.

    python -m medsft.core.engine.commands.score_sharded --model JSON --precision fp32|bf16 --ids N \
        --tp N --pp N --rank R --store FILE < REQUESTS > ANSWERS

All ranks read all requests, each a `Score` (`core.evaluation.requests`); rank 0 writes a line for each. The model lies as in
training, see `parallel.sharding`, and in the same way its likelihoods are computed at each validation (`train.questions`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch.distributed as dist

from medsft.core.engine.commands.answer import open_model, out_of_memory, write_line
from medsft.core.engine.commands.entry_point import end_rank, run_process
from medsft.core.engine.commands.out_of_memory import is_out_of_memory
from medsft.core.engine.formats.source import DTYPES
from medsft.core.engine.formats.vocabulary import ResizedSource
from medsft.core.engine.infer.limits import tokens_at_once
from medsft.core.engine.kernels import cpu
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.mesh import STORE_FILE, open_mesh
from medsft.core.engine.parallel.sharding import build_stage
from medsft.core.engine.train.head import LossHead
from medsft.core.engine.train.pipeline import PipelineDecoder, make_executor
from medsft.core.engine.train.questions import OptionScores, option_scorers
from medsft.core.engine.train.weights import load_weights
from medsft.core.evaluation.during_training import question_set
from medsft.core.evaluation.model import ModelSource
from medsft.core.evaluation.requests import Score, Scored, from_json, to_json
from medsft.core.planning.layout import Layout, check_layout, padded_model
from medsft.errors import ConfigError

_AT_ONCE = 64
"""Requests after which rank 0 writes: what a kill leaves to be asked again."""
_STREAMS_A_STAGE = 4
"""In a call of a pipeline, whose stages wait at its beginning and at its end."""


def score_all(model: ModelSource, precision: str, ids: int, layout: Layout, requests: Sequence[Score]) -> None:
    """Score requests on this rank. Raises ConfigError for a layout that cannot work for the model."""
    mesh = open_mesh(layout)
    source, dtype = open_model(model, precision, mesh.device, ids=ids)
    if problems := check_layout(source.config, layout, global_batch=1):
        raise ConfigError(problems)
    sizes = padded_model(source.config, tp=layout.tp, vocab_multiple=None) if layout.tp > 1 else source.config
    stage = PipelineDecoder if layout.pp > 1 else Decoder
    decoder = build_stage(sizes, mesh, compute_dtype=dtype, trainable=(), decoder_class=stage)
    tokens = source.config.vocab_size
    load_weights(dict(decoder.named_parameters()), ResizedSource(source, tokens, rows=sizes.vocab_size))
    parts = [requests[start : start + _AT_ONCE] for start in range(0, len(requests), _AT_ONCE)]
    scorers = option_scorers(
        [question_set(part, [0] * len(part)) for part in parts],
        mesh,
        partial(make_executor, decoder, LossHead(decoder, tokens, mesh), mesh, dtype=dtype),
        most_tokens=tokens_at_once(mesh.device),
        streams=_STREAMS_A_STAGE * layout.pp if layout.pp > 1 else 1,
    )
    try:
        for part, scorer in zip(parts, scorers, strict=True):
            scores = scorer.score()
            if mesh.reports:
                _write(part, scores)
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory() from None
        raise
    dist.destroy_process_group()


def _write(requests: Sequence[Score], scores: OptionScores) -> None:
    ends = list(accumulate(len(request.continuations) for request in requests))
    for request, end in zip(requests, ends, strict=True):
        own = slice(end - len(request.continuations), end)
        scored = Scored(
            id=request.id,
            log_likelihoods=tuple(scores.log_likelihoods[own].tolist()),
            num_tokens=tuple(map(len, request.continuations)),
            greedy=tuple(scores.greedy[own].tolist()),
        )
        write_line(to_json(scored))


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="score_sharded")
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--precision", choices=sorted(DTYPES), required=True)
    parser.add_argument("--store", required=True, metavar="FILE", help="through which the ranks meet; not there yet")
    for name in ("ids", "tp", "pp", "rank"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(arguments)
    layout = Layout(tp=options.tp, pp=options.pp)
    os.environ |= {"WORLD_SIZE": str(layout.world), STORE_FILE: options.store}
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(options.rank))
    cpu.compile_ahead()
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # gloo writes to the standard output, too
    requests = [from_json(json.loads(line)) for line in sys.stdin.buffer]
    score_all(ModelSource.from_json(options.model), options.precision, options.ids, layout, requests)


if __name__ == "__main__":
    end_rank(run_process(main))
