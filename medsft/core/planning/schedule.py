"""How much is trained, and when: documents of an iteration, iterations, validations, learning rates. Pure functions."""

from __future__ import annotations

import math
from fractions import Fraction

from medsft.core.config.eval_tasks import best_task
from medsft.core.config.run_config import RunConfig

_LARGEST_EVAL_INTERVAL = 100
"""The original's."""
_FEWEST_EVALS = 5
_MOST_EPOCH_ENDS = 20
"""A set that is seen more often than this is small: its epochs are too short to validate after each."""


def plan_global_batch(config: RunConfig, documents: int) -> int:
    """Return the documents of one iteration: --global_batch, or all documents where there are fewer.

    Otherwise an iteration would hold the same documents several times, and `--epochs 1` would be many epochs. The original
    fills its iterations up in this way, and so does `--compat megatron-llm`.
    """
    return config.global_batch if config.rules.repeats_documents else min(config.global_batch, documents)


def plan_iterations(config: RunConfig, documents: int, global_batch: int) -> int:
    """Return the iterations of a run over this many documents: --iters, or what --epochs asks for, at most --max_iters.

    Those of the epochs are epochs * documents / global_batch, rounded up: the last iteration is filled up from the next
    permutation. The original rounds up once more, to a multiple of 10; `--compat megatron-llm` does the same.
    """
    if config.iters is not None:
        wanted = config.iters
    elif multiple := config.rules.iterations_multiple:
        wanted = multiple * math.ceil(math.ceil(config.epochs * documents / global_batch) / multiple)
    else:  # as typed, in decimals: the binary number next to 1.1 is a little larger, and would cost an iteration more
        wanted = max(1, math.ceil(Fraction(repr(float(config.epochs))) * documents / global_batch))
    return wanted if config.max_iters is None else min(wanted, config.max_iters)


def plan_eval_interval(config: RunConfig, num_iterations: int) -> int:
    """Return --eval_interval; when it is not given at most the original's, less where that gives a short run few values."""
    if config.eval_interval is not None:
        return config.eval_interval
    if config.rules.eval_interval is not None:
        return config.rules.eval_interval
    return max(1, min(_LARGEST_EVAL_INTERVAL, num_iterations // _FEWEST_EVALS))


def num_saves(num_iterations: int, save_interval: int) -> int:
    """Return how many checkpoints a run of this many iterations saves: one each `save_interval`, and one after the last."""
    return -(-num_iterations // save_interval)


def keeps_best(config: RunConfig, *, validates: bool) -> bool:
    """Whether a run keeps its best checkpoint; `validates`: it has a validation set, which the accuracy of a task needs not."""
    measured = validates or best_task(config.keep_best) is not None
    return measured and config.keep_best != "none" and config.rules.keeps_best


def most_saves(config: RunConfig, num_iterations: int, *, eval_interval: int | None, ends: frozenset[int]) -> int:
    """Return how many checkpoints a run saves if each validation is better than those before, and is saved too.

    `eval_interval` is None where none is kept for being the best; `ends` are its `epoch_ends`.
    """
    saves, interval = num_saves(num_iterations, config.save_interval), config.save_interval
    if eval_interval is None or not keeps_best(config, validates=True):
        return saves
    both = math.lcm(interval, eval_interval)
    more = (num_iterations - 1) // eval_interval - (num_iterations - 1) // both
    between = ends - {num_iterations} if config.rules.validates_epochs else frozenset()
    return saves + more + sum(end % interval != 0 and end % eval_interval != 0 for end in between)


def most_kept(config: RunConfig, num_iterations: int, *, eval_interval: int | None, ends: frozenset[int]) -> int:
    """Return how many checkpoints are on the disk at once, at most: the latest, the one that is written, and the best.

    The arguments are those of `most_saves`.
    """
    saves = most_saves(config, num_iterations, eval_interval=eval_interval, ends=ends)
    best = keeps_best(config, validates=eval_interval is not None)
    return min(saves, config.keep_last + 1 + best) if config.keep_last else saves


def epoch_ends(documents: int, global_batch: int, num_iterations: int) -> frozenset[int]:
    """Return the iterations, counted from 1, after which another whole pass over the documents is done; none of very many."""
    passes = num_iterations * global_batch // documents
    if passes > _MOST_EPOCH_ENDS:
        return frozenset()
    return frozenset(-(-number * documents // global_batch) for number in range(1, passes + 1))


def learning_rate(config: RunConfig, iteration: int, num_iterations: int) -> float:
    """Return the learning rate of an iteration counted from 1.

    It rises linearly over the first `warmup_fraction`, then follows half a cosine from `lr` to `min_lr`, reached at the last
    iteration. The original counts from 0, so its first update has a rate of 0 and its last stays above the minimum:
    `--compat megatron-llm` does the same.
    """
    count = iteration - 1 + config.rules.rate_counts_from
    warmup = config.warmup_fraction * num_iterations
    if warmup > 0 and count <= warmup:
        return config.lr * count / warmup
    if count > num_iterations:
        return config.min_lr
    progress = (count - warmup) / max(num_iterations - warmup, 1e-9)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))
