/* The format nf4: largest values of blocks, codes, and the numbers that codes mean. core/models/nf4.py describes the format; the
   constants, and the middles between them, are passed in. Nothing here is a sum of products, so a compiler that joins products
   and sums gives the same numbers as one that does not. */

#include <math.h>
#include <stdint.h>

#include "numbers.h"

#define BLOCK 64
#define GROUP 256

static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

/* With AVX2 sixteen numbers are looked up at a time, in a table that lies in two registers. Clang has no shuffle by a variable. */
#if defined(__AVX2__) && defined(__GNUC__) && !defined(__clang__)
#define LOOKED_UP 16
typedef int32_t lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t half_lanes __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint8_t eight_bytes __attribute__((vector_size(8), aligned(1), may_alias));

/* found[0], found[1] = the entries of `table` that the codes in eight bytes mean. */
static inline void look_up(const uint8_t *from, const int32_t *table, lanes *found) {
    const lanes both = __builtin_convertvector(*(const eight_bytes *)from, lanes), first = both >> 4, second = both & 15;
    const lanes low = *(const lanes *)table, high = *(const lanes *)(table + 8);
    found[0] = __builtin_shuffle(low, high, __builtin_shuffle(first, second, (lanes){0, 8, 1, 9, 2, 10, 3, 11}));
    found[1] = __builtin_shuffle(low, high, __builtin_shuffle(first, second, (lanes){4, 12, 5, 13, 6, 14, 7, 15}));
}

static inline int32_t bits_fp32(float x) {
    union { float value; int32_t bits; } u = {.value = x};
    return u.bits;
}

static inline int32_t bits_bf16(bf16 x) { return x; }

static inline void store_fp32(float *to, lanes found) { *(lanes *)to = found; }

static inline void store_bf16(bf16 *to, lanes found) { *(half_lanes *)to = __builtin_convertvector(found, half_lanes); }
#endif

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
