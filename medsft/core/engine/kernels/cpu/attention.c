/* Causal attention inside the documents of one token stream, forward and backward, in tiles of 64 queries by 64 keys.

   Softmax is taken tile by tile as the keys go by (Milakov and Gimelshein 2018, as flash attention does), so scores are never
   in memory; the backward computes them again from the log of each row's sum (Dao et al. 2022). One thread does all of a
   key head of a document, so sums are taken in an order that does not depend on the number of threads.

   All products are of one form: sum over steps of a word of `a`, the same for all columns, times a vector of words of `b`. A
   word is an fp32 number or, where the processor multiplies pairs of bf16 numbers (NO_PAIRS: it does, but slowly), two of them
   that follow each other in the direction of the sum. Packing puts them so. attention_tiles.h holds the code for one kind of
   word and is included for each. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#ifdef __AVX512F__
#include <immintrin.h>
#define LANES 16
#define VECTORS 4
/* Without it the compiler reads a vector from memory anew for each row it is multiplied with. */
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))
#else
#define IN_REGISTER(vector)
#define LANES 8
#define VECTORS 2
#endif

#define TILE 64
#define STRIP 4 /* rows of a product that are summed up in registers at a time */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Of `a`, seen as [rows, steps]: all of it, only step <= row (a triangle), or only step >= row. Counted in single numbers. */
typedef enum { ALL, UP_TO_ROW, FROM_ROW } Part;

/* Documents of a stream and what is computed for each: q, out [T, heads, size]; k, v [T, kv_heads, size]. */
typedef struct {
    const int32_t *offsets;
    int64_t documents, heads, kv_heads, size, window;
    int64_t tokens; /* T */
} Shape;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static int64_t longest(const Shape *shape) {
    int64_t most = 0;
    for (int64_t i = 0; i < shape->documents; i++) most = larger(most, shape->offsets[i + 1] - shape->offsets[i]);
    return most;
}

/* Memory of one thread, handed out in aligned pieces. */
typedef struct { char *next; } Scratch;

static void *take(Scratch *scratch, int64_t words) {
    void *piece = scratch->next;
    scratch->next += padded(4 * words, 64);
    return piece;
}

/* The first key that the query sees. */
static inline int64_t first_key(int64_t query, int64_t window) { return window > 0 ? larger(0, query - window + 1) : 0; }

#define INPUT float
#define WIDE(x) (x)
#define NARROW(x) (x)
#define PAIRS 0
#define NAME(function) function##_fp32
#include "attention_tiles.h"

#define INPUT bf16
#define WIDE(x) wide(x)
#define NARROW(x) narrow(x)
#if defined(__AVX512BF16__) && !defined(NO_PAIRS)
#define PAIRS 1
#else
#define PAIRS 0
#endif
#define NAME(function) function##_bf16
#include "attention_tiles.h"
