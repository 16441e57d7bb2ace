/* Element-wise steps of a training step on a CPU, each in one pass over memory. bf16 in and out, fp32 in between.

   Compiled when a training process starts, for the processor it runs on (see __init__.py). Loops over rows are divided among
   the threads of torch's own OpenMP pool. Sums are taken in an order that does not depend on the number of threads, so a run
   can be repeated bit by bit. */

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
   Below -87 it is exp(-87), which bf16 sums do not see. A function of the C library would not become vector instructions. */
static inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    union { int32_t bits; float value; } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}

static inline float sigmoid(float x) {
    return 1.0f / (1.0f + fast_exp(x < -80.0f ? 80.0f : -x));
}

/* out = (x * inverse) * weight; inverse[row] = 1 / sqrt(mean(x^2) + eps), kept for the backward. */
void rms_norm_forward(const bf16 *x, const bf16 *weight, bf16 *out, float *inverse, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = x + row * size;
        bf16 *to = out + row * size;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += wide(from[i]) * wide(from[i]);
        float scale = 1.0f / sqrtf(sum / size + eps);
        inverse[row] = scale;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) to[i] = narrow(wide(narrow(wide(from[i]) * scale)) * wide(weight[i]));
    }
}

/* grad_weight is [parts, size]: the sum over each part of the rows. */
void rms_norm_backward(const bf16 *x, const bf16 *weight, const float *inverse, const bf16 *grad, bf16 *grad_x,
                       float *grad_weight, int64_t rows, int64_t size, int64_t parts) {
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float *sums = grad_weight + part * size;
        for (int64_t i = 0; i < size; i++) sums[i] = 0;
        for (int64_t row = part * rows / parts; row < (part + 1) * rows / parts; row++) {
            const bf16 *from = x + row * size, *above = grad + row * size;
            bf16 *to = grad_x + row * size;
            float scale = inverse[row], along = 0;
#pragma omp simd reduction(+ : along)
            for (int64_t i = 0; i < size; i++) {
                float unit = wide(from[i]) * scale;
                sums[i] += wide(above[i]) * unit;
                along += wide(above[i]) * wide(weight[i]) * unit;
            }
            along /= size;
#pragma omp simd
            for (int64_t i = 0; i < size; i++)
                to[i] = narrow((wide(above[i]) * wide(weight[i]) - wide(from[i]) * scale * along) * scale);
        }
    }
}

/* out = silu(gate) * up */
void swiglu_forward(const bf16 *gate, const bf16 *up, bf16 *out, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) out[i] = narrow(wide(gate[i]) * sigmoid(wide(gate[i])) * wide(up[i]));
}

void swiglu_backward(const bf16 *gate, const bf16 *up, const bf16 *grad, bf16 *grad_gate, bf16 *grad_up, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float x = wide(gate[i]), s = sigmoid(x);
        grad_gate[i] = narrow(wide(grad[i]) * wide(up[i]) * s * (1.0f + x * (1.0f - s)));
        grad_up[i] = narrow(wide(grad[i]) * x * s);
    }
}

/* Which keys a row of a block of attention scores sees: see block_attention.py for how rows are ordered. */
typedef struct { int64_t first, end; } Seen;

static inline Seen seen_by(int64_t row, int64_t keys, int64_t tokens, int64_t group, int64_t window) {
    int64_t end = keys - tokens + row / group + 1;
    int64_t first = window > 0 && end > window ? end - window : 0;
    return (Seen){first, end};
}

/* scores [heads, tokens * group, keys], the block's own tokens being the last keys: softmax in place over the keys that a row
   sees, 0 elsewhere. A `window` of 0 is none. */
static inline void softmax_row(bf16 *row, int64_t keys, Seen seen) {
    float buffer[keys];
    float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t i = seen.first; i < seen.end; i++) highest = wide(row[i]) > highest ? wide(row[i]) : highest;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = seen.first; i < seen.end; i++) sum += buffer[i] = fast_exp(wide(row[i]) - highest);
    float scale = 1.0f / sum;
    for (int64_t i = 0; i < seen.first; i++) row[i] = 0;
#pragma omp simd
    for (int64_t i = seen.first; i < seen.end; i++) row[i] = narrow(buffer[i] * scale);
    for (int64_t i = seen.end; i < keys; i++) row[i] = 0;
}

void causal_softmax(bf16 *scores, int64_t heads, int64_t tokens, int64_t group, int64_t keys, int64_t window) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < heads * tokens * group; r++)
        softmax_row(scores + r * keys, keys, seen_by(r % (tokens * group), keys, tokens, group, window));
}

/* The same for scores, and then grad = p * (grad - sum(p * grad)) in place. */
void causal_softmax_backward(bf16 *scores, bf16 *grad, int64_t heads, int64_t tokens, int64_t group, int64_t keys,
                             int64_t window) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < heads * tokens * group; r++) {
        bf16 *p = scores + r * keys, *g = grad + r * keys;
        Seen seen = seen_by(r % (tokens * group), keys, tokens, group, window);
        softmax_row(p, keys, seen);
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t i = seen.first; i < seen.end; i++) along += wide(p[i]) * wide(g[i]);
        for (int64_t i = 0; i < seen.first; i++) g[i] = 0;
#pragma omp simd
        for (int64_t i = seen.first; i < seen.end; i++) g[i] = narrow(wide(p[i]) * (wide(g[i]) - along));
        for (int64_t i = seen.end; i < keys; i++) g[i] = 0;
    }
}

/* logits [rows, columns] become softmax - onehot(label), the gradient of nll[row] = -log softmax[label] by the logits. */
void cross_entropy(bf16 *logits, const int64_t *labels, float *nll, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        bf16 *x = logits + row * columns;
        float highest = -INFINITY, sum = 0, own = wide(x[labels[row]]);
#pragma omp simd reduction(max : highest)
        for (int64_t i = 0; i < columns; i++) highest = wide(x[i]) > highest ? wide(x[i]) : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < columns; i++) sum += fast_exp(wide(x[i]) - highest);
        float scale = 1.0f / sum;
        nll[row] = logf(sum) - (own - highest);
#pragma omp simd
        for (int64_t i = 0; i < columns; i++) x[i] = narrow(fast_exp(wide(x[i]) - highest) * scale);
        x[labels[row]] = narrow(fast_exp(own - highest) * scale - 1.0f);
    }
}
