/* Attention for one type of numbers; see attention.c. INPUT is the type in memory, WIDE and NARROW convert it from and to
   fp32, PAIRS says whether a word is two INPUTs, NAME gives functions their suffix. */

#if PAIRS
typedef uint32_t NAME(word);
#define PER_WORD 2
#else
typedef float NAME(word);
#define PER_WORD 1
#endif
#define WORD NAME(word)

static inline __attribute__((always_inline)) vector NAME(add_product)(vector sum, WORD a, vector b) {
#if PAIRS
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
#else
    return sum + a * b;
#endif
}

/* c [STRIP, vectors * LANES] += a b over the words `from` up to `to`; a row of `a` is a_row words from the next, a step a_step. */
static inline __attribute__((always_inline)) void NAME(strip)(float *c, int64_t c_row, const WORD *a, int64_t a_row,
                                                              int64_t a_step, const WORD *b, int64_t b_step, int64_t from,
                                                              int64_t to, const int vectors) {
    vector sum[STRIP][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < STRIP; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = *(const vector *)(c + r * c_row + v * LANES);
    for (int64_t s = from; s < to; s++) {
        vector columns[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            columns[v] = *(const vector *)(b + s * b_step + v * LANES);
            IN_REGISTER(columns[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < STRIP; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[r][v] = NAME(add_product)(sum[r][v], a[r * a_row + s * a_step], columns[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < STRIP; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) *(vector *)(c + r * c_row + v * LANES) = sum[r][v];
}

/* c [rows, columns] += a b, with `steps` words to sum over; rows are a multiple of STRIP and columns of LANES. */
static void NAME(multiply)(float *c, int64_t c_row, const WORD *a, int64_t a_row, int64_t a_step, const WORD *b, int64_t b_step,
                           int64_t rows, int64_t columns, int64_t steps, Part part) {
    for (int64_t r = 0; r < rows; r += STRIP) {
        int64_t from = part == FROM_ROW ? r / PER_WORD : 0;
        int64_t to = part == UP_TO_ROW ? smaller(steps, (r + STRIP) / PER_WORD) : steps;
        int64_t column = 0;
        for (; column + VECTORS * LANES <= columns; column += VECTORS * LANES)
            NAME(strip)(c + r * c_row + column, c_row, a + r * a_row, a_row, a_step, b + column, b_step, from, to, VECTORS);
        for (; column < columns; column += LANES)
            NAME(strip)(c + r * c_row + column, c_row, a + r * a_row, a_row, a_step, b + column, b_step, from, to, 1);
    }
}

/* Copy [rows, size] into the words of a tile [TILE, width], and zeros around it. */
static void NAME(load)(WORD *tile, int64_t width, const INPUT *from, int64_t stride, int64_t rows, int64_t size) {
    memset(tile, 0, 4 * TILE * width);
    for (int64_t r = 0; r < rows; r++) {
#if PAIRS
        memcpy(tile + r * width, from + r * stride, 2 * size);
#else
        for (int64_t i = 0; i < size; i++) tile[r * width + i] = WIDE(from[r * stride + i]);
#endif
    }
}

/* [TILE, width] to [width, TILE]: what sums run over `size` multiply with. */
static void NAME(transpose)(WORD *to, const WORD *tile, int64_t width) {
    for (int64_t i = 0; i < width; i++)
        for (int64_t r = 0; r < TILE; r++) to[i * TILE + r] = tile[r * width + i];
}

/* [TILE, width] to [TILE / PER_WORD, width * PER_WORD]: what sums run over the tile's rows multiply with. */
static void NAME(pair_rows)(WORD *to, const WORD *tile, int64_t width) {
#if PAIRS
    for (int64_t p = 0; p < TILE / 2; p++) {
        const uint32_t *even = tile + 2 * p * width, *odd = even + width;
        for (int64_t i = 0; i < width; i++) {
            to[2 * (p * width + i)] = (even[i] & 0xffff) | odd[i] << 16;
            to[2 * (p * width + i) + 1] = even[i] >> 16 | (odd[i] & 0xffff0000);
        }
    }
#else
    memcpy(to, tile, 4 * TILE * width);
#endif
}

/* fp32 [TILE, TILE] as words that follow each other along a row. */
static inline void NAME(words_of_row)(WORD *to, const float *row) {
#if PAIRS
    for (int64_t i = 0; i < TILE / 2; i += LANES)
        *(vector *)(to + i) = (vector)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 2 * i + LANES), _mm512_loadu_ps(row + 2 * i));
#else
    memcpy(to, row, 4 * TILE);
#endif
}

static inline void NAME(store)(INPUT *to, const float *row, int64_t size, float scale) {
    for (int64_t i = 0; i < size; i++) to[i] = NARROW(row[i] * scale);
}

/* One step of the softmax of a row: scores become exp(scale * score - highest) of the keys `first` up to `end`, 0 elsewhere;
   returns what the sums so far are multiplied with, and moves `highest` and `sum` on. */
static inline float NAME(softmax_step)(float *scores, int64_t first, int64_t end, float scale, float *highest, float *sum) {
    float top = *highest, added = 0;
    if (end > first) {
#pragma omp simd reduction(max : top)
        for (int64_t i = first; i < end; i++) top = scores[i] * scale > top ? scores[i] * scale : top;
    }
    float factor = fast_exp(*highest - top);
    for (int64_t i = 0; i < TILE; i++) scores[i] = fast_exp(scores[i] * scale - top);
    for (int64_t i = 0; i < first; i++) scores[i] = 0;
    for (int64_t i = larger(end, 0); i < TILE; i++) scores[i] = 0;
#pragma omp simd reduction(+ : added)
    for (int64_t i = 0; i < TILE; i++) added += scores[i];
    *highest = top;
    *sum = *sum * factor + added;
    return factor;
}

/* Which columns of a tile that begins at `key` the query sees. */
#define SEEN_FROM(query) smaller(TILE, larger(0, first_key(query, shape->window) - key))
#define SEEN_TO(query) larger(0, smaller(TILE, (query) + 1 - key))

/* One key head of one document of n tokens, from `start` on. sums [heads, T]: log of the sum of the exponentials of a row. */
static void NAME(forward_head)(const Shape *shape, const INPUT *q, const INPUT *k, const INPUT *v, INPUT *out, float *sums,
                               int64_t start, int64_t n, int64_t kv_head, Scratch scratch) {
    const int64_t size = shape->size, columns = padded(size, LANES), width = columns / PER_WORD, length = padded(n, TILE);
    const int64_t group = shape->heads / shape->kv_heads, q_row = shape->heads * size, kv_row = shape->kv_heads * size;
    const float scale = 1.0f / sqrtf((float)size);
    WORD *keys = take(&scratch, length * width), *values = take(&scratch, length * width);
    WORD *tile = take(&scratch, TILE * width), *weights = take(&scratch, TILE * TILE);
    float *scores = take(&scratch, TILE * TILE), *mixed = take(&scratch, TILE * columns);
    for (int64_t key = 0; key < n; key += TILE) {
        int64_t at = (start + key) * kv_row + kv_head * size;
        NAME(load)(tile, width, k + at, kv_row, smaller(TILE, n - key), size);
        NAME(transpose)(keys + key * width, tile, width);
        NAME(load)(tile, width, v + at, kv_row, smaller(TILE, n - key), size);
        NAME(pair_rows)(values + key * width, tile, width);
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t query = 0; query < n; query += TILE) {
            const int64_t rows = smaller(TILE, n - query), full = padded(rows, STRIP);
            float highest[TILE], sum[TILE];
            for (int64_t r = 0; r < TILE; r++) highest[r] = -1e30f, sum[r] = 0;
            memset(mixed, 0, 4 * TILE * columns);
            NAME(load)(tile, width, q + (start + query) * q_row + head * size, q_row, rows, size);
            for (int64_t key = first_key(query, shape->window) / TILE * TILE; key <= query; key += TILE) {
                memset(scores, 0, 4 * TILE * TILE);
                NAME(multiply)(scores, TILE, tile, width, 1, keys + key * width, TILE, full, TILE, width, ALL);
                for (int64_t r = 0; r < full; r++) {
                    float *row = scores + r * TILE, factor;
                    factor = NAME(softmax_step)(row, SEEN_FROM(query + r), SEEN_TO(query + r), scale, highest + r, sum + r);
                    for (int64_t i = 0; i < columns; i++) mixed[r * columns + i] *= factor;
                    NAME(words_of_row)(weights + r * (TILE / PER_WORD), row);
                }
                NAME(multiply)(mixed, columns, weights, TILE / PER_WORD, 1, values + key * width, columns, full, columns,
                               TILE / PER_WORD, key == query ? UP_TO_ROW : ALL);
            }
            for (int64_t r = 0; r < rows; r++) {
                NAME(store)(out + (start + query + r) * q_row + head * size, mixed + r * columns, size, 1.0f / sum[r]);
                sums[head * shape->tokens + start + query + r] = highest[r] + logf(sum[r]);
            }
        }
}

/* Scores and gradients of the probabilities by row become probabilities and gradients of the scores. */
static inline void NAME(softmax_backward)(float *scores, float *grad, int64_t first, int64_t end, float scale, float sum,
                                          float along) {
    for (int64_t i = 0; i < TILE; i++) {
        float p = fast_exp(scores[i] * scale - sum);
        scores[i] = p;
        grad[i] = p * (grad[i] - along) * scale;
    }
    for (int64_t i = 0; i < first; i++) scores[i] = grad[i] = 0;
    for (int64_t i = end; i < TILE; i++) scores[i] = grad[i] = 0;
}

/* The gradients of one key head of one document. */
static void NAME(backward_head)(const Shape *shape, const INPUT *q, const INPUT *k, const INPUT *v, const INPUT *out,
                                const float *sums, const INPUT *grad, INPUT *dq, INPUT *dk, INPUT *dv, int64_t start, int64_t n,
                                int64_t kv_head, Scratch scratch) {
    const int64_t size = shape->size, columns = padded(size, LANES), width = columns / PER_WORD, length = padded(n, TILE);
    const int64_t group = shape->heads / shape->kv_heads, q_row = shape->heads * size, kv_row = shape->kv_heads * size;
    const float scale = 1.0f / sqrtf((float)size);
    WORD *keys = take(&scratch, length * width), *values = take(&scratch, length * width);
    WORD *key_pairs = take(&scratch, length * width);
    float *key_sums = take(&scratch, length * columns), *value_sums = take(&scratch, length * columns);
    WORD *queries = take(&scratch, TILE * width), *query_pairs = take(&scratch, TILE * width);
    WORD *above = take(&scratch, TILE * width), *above_pairs = take(&scratch, TILE * width);
    float *scores = take(&scratch, TILE * TILE), *scores_grad = take(&scratch, TILE * TILE);
    WORD *weights = take(&scratch, TILE * TILE), *by_row = take(&scratch, TILE * TILE), *by_key = take(&scratch, TILE * TILE);
    float *query_sums = take(&scratch, TILE * columns);
    memset(key_sums, 0, 4 * length * columns);
    memset(value_sums, 0, 4 * length * columns);
    for (int64_t key = 0; key < n; key += TILE) {
        int64_t at = (start + key) * kv_row + kv_head * size;
        NAME(load)(queries, width, v + at, kv_row, smaller(TILE, n - key), size);
        NAME(transpose)(values + key * width, queries, width);
        NAME(load)(queries, width, k + at, kv_row, smaller(TILE, n - key), size);
        NAME(transpose)(keys + key * width, queries, width);
        NAME(pair_rows)(key_pairs + key * width, queries, width);
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t query = 0; query < n; query += TILE) {
            const int64_t rows = smaller(TILE, n - query), full = padded(rows, STRIP), at = (start + query) * q_row + head * size;
            float along[TILE] = {0}, sum[TILE] = {0};
            for (int64_t r = 0; r < rows; r++) {
                const INPUT *g = grad + at + r * q_row, *o = out + at + r * q_row;
                float total = 0;
#pragma omp simd reduction(+ : total)
                for (int64_t i = 0; i < size; i++) total += WIDE(g[i]) * WIDE(o[i]);
                along[r] = total;
                sum[r] = sums[head * shape->tokens + start + query + r];
            }
            NAME(load)(queries, width, q + at, q_row, rows, size);
            NAME(pair_rows)(query_pairs, queries, width);
            NAME(load)(above, width, grad + at, q_row, rows, size);
            NAME(pair_rows)(above_pairs, above, width);
            memset(query_sums, 0, 4 * TILE * columns);
            for (int64_t key = first_key(query, shape->window) / TILE * TILE; key <= query; key += TILE) {
                const int64_t seen = padded(smaller(TILE, n - key), STRIP), steps = TILE / PER_WORD;
                memset(scores, 0, 4 * TILE * TILE);
                memset(scores_grad, 0, 4 * TILE * TILE);
                NAME(multiply)(scores, TILE, queries, width, 1, keys + key * width, TILE, full, TILE, width, ALL);
                NAME(multiply)(scores_grad, TILE, above, width, 1, values + key * width, TILE, full, TILE, width, ALL);
                for (int64_t r = 0; r < full; r++)
                    NAME(softmax_backward)(scores + r * TILE, scores_grad + r * TILE, SEEN_FROM(query + r), SEEN_TO(query + r),
                                           scale, sum[r], along[r]);
                for (int64_t r = 0; r < TILE; r++) {
                    NAME(words_of_row)(weights + r * steps, scores + r * TILE);
                    NAME(words_of_row)(by_row + r * steps, scores_grad + r * TILE);
                }
                Part above_diagonal = key == query ? UP_TO_ROW : ALL, below = key == query ? FROM_ROW : ALL;
                NAME(pair_rows)(by_key, weights, steps);
                NAME(multiply)(value_sums + key * columns, columns, by_key, 1, TILE, above_pairs, columns, seen, columns, steps,
                               below);
                NAME(pair_rows)(by_key, by_row, steps);
                NAME(multiply)(key_sums + key * columns, columns, by_key, 1, TILE, query_pairs, columns, seen, columns, steps,
                               below);
                NAME(multiply)(query_sums, columns, by_row, steps, 1, key_pairs + key * width, columns, full, columns, steps,
                               above_diagonal);
            }
            for (int64_t r = 0; r < rows; r++) NAME(store)(dq + at + r * q_row, query_sums + r * columns, size, 1.0f);
        }
    for (int64_t r = 0; r < n; r++) {
        int64_t at = (start + r) * kv_row + kv_head * size;
        NAME(store)(dk + at, key_sums + r * columns, size, 1.0f);
        NAME(store)(dv + at, value_sums + r * columns, size, 1.0f);
    }
}

static int64_t NAME(scratch_bytes)(const Shape *shape) {
    int64_t columns = padded(shape->size, LANES), length = padded(longest(shape), TILE);
    return 4 * (5 * length * columns + 5 * TILE * columns + 5 * TILE * TILE) + 64 * 20;
}

/* Forward, or backward where there is a `grad`: one thread does all of a key head of a document. Return 0, or 1 where memory was
   short. */
static int NAME(each_head)(const Shape *shape, const INPUT *q, const INPUT *k, const INPUT *v, INPUT *out, float *sums,
                           const INPUT *grad, INPUT *dq, INPUT *dk, INPUT *dv) {
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        void *memory = aligned_alloc(64, padded(NAME(scratch_bytes)(shape), 64));
        failed = memory == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < shape->documents * shape->kv_heads; i++) {
            int64_t document = i / shape->kv_heads, kv_head = i % shape->kv_heads;
            int64_t start = shape->offsets[document], n = shape->offsets[document + 1] - start;
            if (memory && grad)
                NAME(backward_head)(shape, q, k, v, out, sums, grad, dq, dk, dv, start, n, kv_head, (Scratch){memory});
            else if (memory)
                NAME(forward_head)(shape, q, k, v, out, sums, start, n, kv_head, (Scratch){memory});
        }
        free(memory);
    }
    return failed;
}

int NAME(attention_forward)(const INPUT *q, const INPUT *k, const INPUT *v, INPUT *out, float *sums, const int32_t *offsets,
                            int64_t documents, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t size, int64_t window) {
    const Shape shape = {offsets, documents, heads, kv_heads, size, window, tokens};
    return NAME(each_head)(&shape, q, k, v, out, sums, NULL, NULL, NULL, NULL);
}

int NAME(attention_backward)(const INPUT *q, const INPUT *k, const INPUT *v, INPUT *out, float *sums, const INPUT *grad,
                             INPUT *dq, INPUT *dk, INPUT *dv, const int32_t *offsets, int64_t documents, int64_t tokens,
                             int64_t heads, int64_t kv_heads, int64_t size, int64_t window) {
    const Shape shape = {offsets, documents, heads, kv_heads, size, window, tokens};
    return NAME(each_head)(&shape, q, k, v, out, sums, grad, dq, dk, dv);
}

#include "attention_ranges.h"

#undef SEEN_FROM
#undef SEEN_TO
#undef PER_WORD
#undef WORD
#undef INPUT
#undef WIDE
#undef NARROW
#undef PAIRS
#undef NAME
