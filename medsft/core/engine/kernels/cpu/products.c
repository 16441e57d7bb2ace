/* Matrix products in fp32, after Goto and van de Geijn (2008): `b` is packed for all threads, in panels as wide as two registers;
   then each thread packs a few rows of `a` at a time and multiplies, and what it adds up is in registers.

   Threads take rows as they come, but each number of the product is summed up by one of them, in an order that depends on the
   sizes alone: a run can be repeated bit by bit. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A tile of the product is ROWS by 2 vectors: of 32 registers with AVX-512, or of 16, they leave room for the factors. */
#ifdef __AVX512F__
#define LANES 16
#define ROWS 12
#else
#define LANES 8
#define ROWS 6
#endif
#define COLUMNS (2 * LANES)
#define STEPS 384                /* of a sum at a time: ROWS of them stay in the first cache, a panel in the second */
#define PACKED_STEPS (3 * STEPS) /* of `b` at a time, */
#define PACKED_COLUMNS 1536      /* with these columns: 7 MB */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Any two-dimensional tensor: how far apart in memory its rows and its columns are. */
typedef struct { const float *at; int64_t row, column; } Matrix;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* c (=, or += where it holds the sum so far) a tile of the product; `rows` and `columns` of it are inside of c. */
static void tile(float *c, int64_t c_row, const float *a, const float *b, int64_t steps, int64_t rows, int64_t columns, int begun) {
    vector sums[ROWS][2] = {0};
    for (int64_t k = 0; k < steps; k++) {
        vector left = *(const vector *)(b + k * COLUMNS), right = *(const vector *)(b + k * COLUMNS + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            sums[r][0] += a[k * ROWS + r] * left;
            sums[r][1] += a[k * ROWS + r] * right;
        }
    }
    if (rows == ROWS && columns == COLUMNS) {
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vector *to = (vector *)(c + r * c_row);
            if (begun) sums[r][0] += to[0], sums[r][1] += to[1];
            to[0] = sums[r][0], to[1] = sums[r][1];
        }
        return;
    }
    float whole[ROWS][COLUMNS];
    memcpy(whole, sums, sizeof whole);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++) c[r * c_row + i] = begun ? c[r * c_row + i] + whole[r][i] : whole[r][i];
}

/* to[k * width + i] = from[i * across + k * along] for i < count, 0 for the others. */
static inline void pack(float *to, const int64_t width, const float *from, int64_t across, int64_t along, int64_t count,
                        int64_t steps) {
    if (count < width) memset(to, 0, 4 * width * steps);
    if (across == 1 && count == width) {
        for (int64_t k = 0; k < steps; k++)
            for (int64_t i = 0; i < width; i++) to[k * width + i] = from[k * along + i];
        return;
    }
    /* A cache line at a time, so that each is read once however far apart they are. */
    for (int64_t k = 0; k < steps; k += 16)
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = k; j < smaller(k + 16, steps); j++) to[j * width + i] = from[i * across + j * along];
}

/* At most ROWS rows of the product: c [rows, columns] (+)= a [rows, steps] times what was packed of b [steps, columns]. */
static void multiply_rows(float *c, int64_t c_row, Matrix a, const float *b, int64_t rows, int64_t columns, int64_t steps,
                          int begun) {
    float packed[STEPS * ROWS] __attribute__((aligned(64)));
    for (int64_t k = 0; k < steps; k += STEPS) {
        int64_t depth = smaller(STEPS, steps - k);
        pack(packed, ROWS, a.at + k * a.column, a.row, a.column, rows, depth);
        for (int64_t i = 0; i < columns; i += COLUMNS)
            tile(c + i, c_row, packed, b + i * steps + k * COLUMNS, depth, rows, smaller(COLUMNS, columns - i), begun || k > 0);
    }
}

/* c [rows, columns] = a [rows, steps] times b [steps, columns], each at least 1, c without gaps. Return 0, or 1 where memory was
   short. */
int multiply_fp32(const float *a, const float *b, float *c, int64_t rows, int64_t columns, int64_t steps, int64_t a_row,
                  int64_t a_column, int64_t b_row, int64_t b_column) {
    const int64_t width = smaller(PACKED_COLUMNS, (columns + COLUMNS - 1) / COLUMNS * COLUMNS);
    const int64_t height = smaller(PACKED_STEPS, steps);
    float *packed = aligned_alloc(64, 4 * height * width);
    if (packed == NULL) return 1;
#pragma omp parallel
    for (int64_t left = 0; left < columns; left += width)
        for (int64_t k = 0; k < steps; k += height) {
            const int64_t wide = smaller(width, columns - left), depth = smaller(height, steps - k);
            /* Threads wait for each other as rarely as can be: on a busy machine that is dear. */
            if (left || k) {
#pragma omp barrier
            }
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < wide; i += COLUMNS)
                pack(packed + i * depth, COLUMNS, b + (left + i) * b_column + k * b_row, b_column, b_row,
                     smaller(COLUMNS, wide - i), depth);
#pragma omp for schedule(dynamic) nowait
            for (int64_t r = 0; r < rows; r += ROWS)
                multiply_rows(c + r * columns + left, columns, (Matrix){a + r * a_row + k * a_column, a_row, a_column}, packed,
                              smaller(ROWS, rows - r), wide, depth, k > 0);
        }
    free(packed);
    return 0;
}
