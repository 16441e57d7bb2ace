/* The format nf4: largest values of blocks, codes, and the numbers that codes mean. core/models/nf4.py describes the format; the
   constants, and the middles between them, are passed in. Nothing here is a sum of products, so a compiler that joins products
   and sums gives the same numbers as one that does not. */

#include <math.h>
#include <stdint.h>

#include "numbers.h"

#define BLOCK 64
#define GROUP 256

static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

#define INPUT float
#define WIDE(x) (x)
#define NARROW(x) (x)
#define NAME(function) function##_fp32
#include "nf4_steps.h"

#define INPUT bf16
#define WIDE(x) wide(x)
#define NARROW(x) narrow(x)
#define NAME(function) function##_bf16
#include "nf4_steps.h"
