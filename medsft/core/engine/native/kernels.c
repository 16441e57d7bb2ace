/* Element-wise steps of a training step on a CPU, each in one pass over memory. bf16 in and out, fp32 in between.

   Compiled when a training process starts, for the processor it runs on (see __init__.py). Loops over rows are divided among
   the threads of torch's own OpenMP pool. Sums are taken in an order that does not depend on the number of threads, so a run
   can be repeated bit by bit. */

#include <math.h>
#include <stdint.h>

#include "numbers.h"

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
