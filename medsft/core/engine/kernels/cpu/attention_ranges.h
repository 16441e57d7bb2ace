/* Attention of a few queries to many keys that were computed before, for one type of numbers; included by attention_tiles.h.

   Group g has the queries from queries[g] up to queries[g + 1]. Its keys are rows of k and v: those of the ranges [start, end) from
   pieces[g] up to pieces[g + 1], one range behind the other. Its last query sees all of them, the one before it one less, and so
   on. A tile holds the rows of all heads that share a key head, so that keys are read once for all of them. */

typedef struct {
    const int64_t *ranges; /* [pieces, 2] */
    int64_t pieces, keys;
} NAME(Keys);

/* Copy the keys (or values) `key` up to `key + rows` of a group into a tile [TILE, width], and zeros around them: what memory held
   before may be NaN, which a product with zero keeps. */
static void NAME(gather)(WORD *tile, int64_t width, const INPUT *from, int64_t stride, const NAME(Keys) *keys, int64_t key,
                         int64_t rows, int64_t size) {
    int64_t done = 0;
    for (int64_t piece = 0, before = 0; piece < keys->pieces && done < rows; piece++) {
        const int64_t start = keys->ranges[2 * piece], length = keys->ranges[2 * piece + 1] - start;
        for (; done < rows && key + done < before + length; done++) {
            const INPUT *row = from + (start + key + done - before) * stride;
            if (size < width * PER_WORD) memset(tile + done * width, 0, 4 * width);
#if PAIRS
            memcpy(tile + done * width, row, 2 * size);
#else
            for (int64_t i = 0; i < size; i++) tile[done * width + i] = WIDE(row[i]);
#endif
        }
        before += length;
    }
    if (done < TILE) memset(tile + done * width, 0, 4 * (TILE - done) * width);
}

/* One key head of up to TILE / (heads per key head) queries from `start` on, of which the first sees `seen` keys. */
static void NAME(ranges_block)(const Shape *shape, const INPUT *q, const INPUT *k, const INPUT *v, INPUT *out, int64_t start,
                               int64_t queries, int64_t seen, const NAME(Keys) *keys, int64_t kv_head, Scratch scratch) {
    const int64_t size = shape->size, columns = padded(size, LANES), width = columns / PER_WORD;
    const int64_t group = shape->heads / shape->kv_heads, q_row = shape->heads * size, kv_row = shape->kv_heads * size;
    const int64_t rows = queries * group, full = padded(rows, STRIP), all = seen + queries - 1;
    const float scale = 1.0f / sqrtf((float)size);
    WORD *own = take(&scratch, TILE * width), *tile = take(&scratch, TILE * width), *packed = take(&scratch, TILE * width);
    WORD *weights = take(&scratch, TILE * TILE);
    float *scores = take(&scratch, TILE * TILE), *mixed = take(&scratch, TILE * columns);
    float highest[TILE], sum[TILE];
    for (int64_t r = 0; r < TILE; r++) highest[r] = -1e30f, sum[r] = 0;
    memset(mixed, 0, 4 * full * columns);
    memset(own, 0, 4 * full * width);
    for (int64_t r = 0; r < rows; r++) {
        const INPUT *row = q + (start + r / group) * q_row + (kv_head * group + r % group) * size;
#if PAIRS
        memcpy(own + r * width, row, 2 * size);
#else
        for (int64_t i = 0; i < size; i++) own[r * width + i] = WIDE(row[i]);
#endif
    }
    for (int64_t key = first_key(seen - 1, shape->window) / TILE * TILE; key < all; key += TILE) {
        const int64_t here = smaller(TILE, all - key);
        NAME(gather)(tile, width, k + kv_head * size, kv_row, keys, key, here, size);
        NAME(transpose)(packed, tile, width);
        memset(scores, 0, 4 * full * TILE);
        NAME(multiply)(scores, TILE, own, width, 1, packed, TILE, full, TILE, width, ALL);
        NAME(gather)(tile, width, v + kv_head * size, kv_row, keys, key, here, size);
        NAME(pair_rows)(packed, tile, width);
        for (int64_t r = 0; r < full; r++) {
            const int64_t query = seen - 1 + smaller(r / group, queries - 1);
            float *row = scores + r * TILE, factor;
            factor = NAME(softmax_step)(row, SEEN_FROM(query), SEEN_TO(query), scale, highest + r, sum + r);
            for (int64_t i = 0; i < columns; i++) mixed[r * columns + i] *= factor;
            NAME(words_of_row)(weights + r * (TILE / PER_WORD), row);
        }
        NAME(multiply)(mixed, columns, weights, TILE / PER_WORD, 1, packed, columns, full, columns, TILE / PER_WORD, ALL);
    }
    for (int64_t r = 0; r < rows; r++)
        NAME(store)(out + (start + r / group) * q_row + (kv_head * group + r % group) * size, mixed + r * columns, size,
                    1.0f / sum[r]);
}

/* out [T, heads, size] for q of that shape; k, v [rows, kv_heads, size]. At most TILE heads share a key head. Return 0, or 1 where
   memory was short. */
int NAME(attention_ranges)(const INPUT *q, const INPUT *k, const INPUT *v, INPUT *out, const int32_t *queries,
                           const int32_t *pieces, const int64_t *ranges, int64_t groups, int64_t heads, int64_t kv_heads,
                           int64_t size, int64_t window) {
    const Shape shape = {NULL, groups, heads, kv_heads, size, window, 0};
    const int64_t block = TILE / (heads / kv_heads), columns = padded(size, LANES);
    int64_t *blocks = malloc(sizeof(int64_t) * (size_t)(groups + 1)); /* how many come before those of a group */
    int failed = blocks == NULL;
    if (failed) return failed;
    blocks[0] = 0;
    for (int64_t g = 0; g < groups; g++) blocks[g + 1] = blocks[g] + (queries[g + 1] - queries[g] + block - 1) / block;
#pragma omp parallel reduction(| : failed)
    {
        void *memory = aligned_alloc(64, padded(4 * (4 * TILE * columns + 2 * TILE * TILE) + 64 * 8, 64));
        failed = memory == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks[groups] * kv_heads; i++) {
            const int64_t number = i / kv_heads;
            int64_t low = 0, high = groups; /* the group of this block: blocks[low] <= number < blocks[low + 1] */
            while (high - low > 1) {
                const int64_t middle = (low + high) / 2;
                if (blocks[middle] <= number) low = middle;
                else high = middle;
            }
            NAME(Keys) keys = {ranges + 2 * pieces[low], pieces[low + 1] - pieces[low], 0};
            for (int64_t piece = 0; piece < keys.pieces; piece++) keys.keys += keys.ranges[2 * piece + 1] - keys.ranges[2 * piece];
            const int64_t own = queries[low + 1] - queries[low], first = (number - blocks[low]) * block;
            if (memory)
                NAME(ranges_block)(&shape, q, k, v, out, queries[low] + first, smaller(block, own - first),
                                   keys.keys - own + first + 1, &keys, i % kv_heads, (Scratch){memory});
        }
        free(memory);
    }
    free(blocks);
    return failed;
}
