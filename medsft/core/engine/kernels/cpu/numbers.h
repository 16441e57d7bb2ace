/* Numbers as the kernels see them: bf16 beside fp32, and an exponential that becomes vector instructions. */

#ifndef MEDSFT_NUMBERS_H
#define MEDSFT_NUMBERS_H

#include <math.h>
#include <stdint.h>

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    union { uint32_t bits; float value; } u = {.bits = (uint32_t)x << 16};
    return u.value;
}

/* To the nearest, ties to even, as torch rounds; a NaN stays one. */
static inline bf16 narrow(float x) {
    union { float value; uint32_t bits; } u = {.value = x};
    uint32_t rounded = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16;
    return x == x ? (bf16)rounded : (bf16)0x7fc0;
}

/* exp for x <= 88, relative error below 3e-7: 2^n * p(r) with |r| <= ln(2) / 2, p the Taylor polynomial of degree 6.
   Below -87 it is exp(-87), which sums of numbers near 1 do not see. A function of the C library would not become vector
   instructions. */
static inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    union { int32_t bits; float value; } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}

#endif
