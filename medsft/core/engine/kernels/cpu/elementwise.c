/* Element-wise steps of a training step on a CPU, each in one pass over memory. Numbers in and out as they are in memory, fp32
   in between.

   Compiled when a training process starts, for the processor it runs on (see __init__.py). Loops over rows are divided among
   the threads of torch's own OpenMP pool. Sums are taken in an order that does not depend on the number of threads, so a run
   can be repeated bit by bit. */

#include <math.h>
#include <stdint.h>

#include "numbers.h"

static inline float sigmoid(float x) {
    return 1.0f / (1.0f + fast_exp(x < -80.0f ? 80.0f : -x));
}

#define INPUT float
#define WIDE(x) (x)
#define NARROW(x) (x)
#define NAME(function) function##_fp32
#include "elementwise_steps.h"

#define INPUT bf16
#define WIDE(x) wide(x)
#define NARROW(x) narrow(x)
#define NAME(function) function##_bf16
#include "elementwise_steps.h"
