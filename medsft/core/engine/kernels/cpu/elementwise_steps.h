/* Element-wise steps for one type of numbers; see elementwise.c. INPUT is the type in memory, WIDE and NARROW convert it from and
   to fp32, NAME gives functions their suffix. */

/* out = (x * inverse) * weight; inverse[row] = 1 / sqrt(mean(x^2) + eps), kept for the backward. */
void NAME(rms_norm_forward)(const INPUT *x, const INPUT *weight, INPUT *out, float *inverse, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const INPUT *from = x + row * size;
        INPUT *to = out + row * size;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += WIDE(from[i]) * WIDE(from[i]);
        float scale = 1.0f / sqrtf(sum / size + eps);
        inverse[row] = scale;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) to[i] = NARROW(WIDE(NARROW(WIDE(from[i]) * scale)) * WIDE(weight[i]));
    }
}

/* grad_weight is [parts, size]: the sum over each part of the rows. */
void NAME(rms_norm_backward)(const INPUT *x, const INPUT *weight, const float *inverse, const INPUT *grad, INPUT *grad_x,
                       float *grad_weight, int64_t rows, int64_t size, int64_t parts) {
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float *sums = grad_weight + part * size;
        for (int64_t i = 0; i < size; i++) sums[i] = 0;
        for (int64_t row = part * rows / parts; row < (part + 1) * rows / parts; row++) {
            const INPUT *from = x + row * size, *above = grad + row * size;
            INPUT *to = grad_x + row * size;
            float scale = inverse[row], along = 0;
#pragma omp simd reduction(+ : along)
            for (int64_t i = 0; i < size; i++) {
                float unit = WIDE(from[i]) * scale;
                sums[i] += WIDE(above[i]) * unit;
                along += WIDE(above[i]) * WIDE(weight[i]) * unit;
            }
            along /= size;
#pragma omp simd
            for (int64_t i = 0; i < size; i++)
                to[i] = NARROW((WIDE(above[i]) * WIDE(weight[i]) - WIDE(from[i]) * scale * along) * scale);
        }
    }
}

/* out = silu(gate) * up */
void NAME(swiglu_forward)(const INPUT *gate, const INPUT *up, INPUT *out, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) out[i] = NARROW(WIDE(gate[i]) * sigmoid(WIDE(gate[i])) * WIDE(up[i]));
}

void NAME(swiglu_backward)(const INPUT *gate, const INPUT *up, const INPUT *grad, INPUT *grad_gate, INPUT *grad_up, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float x = WIDE(gate[i]), s = sigmoid(x);
        grad_gate[i] = NARROW(WIDE(grad[i]) * WIDE(up[i]) * s * (1.0f + x * (1.0f - s)));
        grad_up[i] = NARROW(WIDE(grad[i]) * x * s);
    }
}

/* out = heads rotated, both [tokens, heads, 2 * half], by angles whose cosines and sines are [tokens, half]; back with turn -1.
   Element i of the first half of a head is paired with element i of the second. */
void NAME(rotate)(const INPUT *heads, const INPUT *cosines, const INPUT *sines, INPUT *out, int64_t tokens, int64_t count,
                  int64_t half, float turn) {
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < tokens; token++) {
        const INPUT *c = cosines + token * half, *s = sines + token * half;
        for (int64_t head = token * count; head < (token + 1) * count; head++) {
            const INPUT *first = heads + 2 * head * half, *second = first + half;
            INPUT *to = out + 2 * head * half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float a = WIDE(first[i]), b = WIDE(second[i]), sine = turn * WIDE(s[i]);
                to[i] = NARROW(a * WIDE(c[i]) - b * sine);
                to[half + i] = NARROW(b * WIDE(c[i]) + a * sine);
            }
        }
    }
}

/* logits [rows, columns] become softmax - onehot(label), the gradient of nll[row] = -log softmax[label] by the logits. */
void NAME(cross_entropy)(INPUT *logits, const int64_t *labels, float *nll, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        INPUT *x = logits + row * columns;
        float highest = -INFINITY, sum = 0, own = WIDE(x[labels[row]]);
#pragma omp simd reduction(max : highest)
        for (int64_t i = 0; i < columns; i++) highest = WIDE(x[i]) > highest ? WIDE(x[i]) : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < columns; i++) sum += fast_exp(WIDE(x[i]) - highest);
        float scale = 1.0f / sum;
        nll[row] = logf(sum) - (own - highest);
#pragma omp simd
        for (int64_t i = 0; i < columns; i++) x[i] = NARROW(fast_exp(WIDE(x[i]) - highest) * scale);
        x[labels[row]] = NARROW(fast_exp(own - highest) * scale - 1.0f);
    }
}

#undef INPUT
#undef WIDE
#undef NARROW
#undef NAME
