/* nf4 for one type of numbers; see nf4.c. INPUT is the type in memory, WIDE and NARROW convert it from and to fp32, NAME gives
   functions their suffix. */

/* largest [rows, blocks]: of each block of a row the largest absolute value. */
void NAME(nf4_largest)(const INPUT *matrix, float *largest, int64_t rows, int64_t columns) {
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t block = 0; block < blocks; block++) {
            const INPUT *from = matrix + row * columns + block * BLOCK;
            const int64_t length = lesser(BLOCK, columns - block * BLOCK);
            float found = 0;
#pragma omp simd reduction(max : found)
            for (int64_t i = 0; i < length; i++) found = fabsf(WIDE(from[i])) > found ? fabsf(WIDE(from[i])) : found;
            largest[row * blocks + block] = found;
        }
}

/* codes [rows, count / 2 rounded up] of the columns from `first` on: how many of the 15 middles a number exceeds, when it is
   divided by its block's largest; the first of two neighbors in the upper four bits. A byte's second half is `zero` where there is
   no second number. */
void NAME(nf4_codes)(const INPUT *matrix, const float *largest, const float *middles, uint8_t *codes, int64_t rows, int64_t columns,
                     int64_t first, int64_t count, int64_t zero) {
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK, bytes = (count + 1) / 2;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        uint8_t *to = codes + row * bytes;
        uint8_t of_block[BLOCK];
        for (int64_t column = first; column < first + count;) {
            const int64_t end = lesser(first + count, (column / BLOCK + 1) * BLOCK), length = end - column;
            const INPUT *from = matrix + row * columns + column;
            const float found = largest[row * blocks + column / BLOCK], divisor = found > 0 ? found : 1;
#pragma omp simd
            for (int64_t i = 0; i < length; i++) {
                const float unit = WIDE(from[i]) / divisor;
                int32_t code = 0;
                for (int m = 0; m < 15; m++) code += unit > middles[m];
                of_block[i] = (uint8_t)code;
            }
            for (int64_t i = 0; i < length; i++) {
                const int64_t place = column - first + i;
                if (place & 1) to[place / 2] |= of_block[i];
                else to[place / 2] = (uint8_t)(of_block[i] << 4);
            }
            column = end;
        }
        if (count & 1) to[bytes - 1] |= (uint8_t)zero;
    }
}

/* out [rows, columns]: the numbers that codes mean. `begins` is the place of the first column in its block, `first_block` that of
   the first block in its group; a row of the whole matrix has `row_blocks` blocks, of which `blocks` are here. */
void NAME(nf4_numbers)(INPUT *out, const uint8_t *codes, const int8_t *scales, const float *groups, const float *constants,
                       int64_t rows, int64_t columns, int64_t blocks, int64_t begins, int64_t first_block, int64_t row_blocks) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *from = codes + row * ((columns + 1) / 2);
        INPUT *to = out + row * columns;
        for (int64_t block = 0; block < blocks; block++) {
            const float *group = groups + 2 * ((first_block + row * row_blocks + block) / GROUP);
            /* The product of int8 and fp32 is exact in fp64. */
            const float largest = (float)((double)group[0] + (double)scales[row * blocks + block] * (double)group[1]);
            INPUT numbers[16];
            for (int i = 0; i < 16; i++) numbers[i] = NARROW(constants[i] * largest);
            int64_t i = block ? block * BLOCK - begins : 0;
            const int64_t end = lesser(columns, (block + 1) * BLOCK - begins);
            if (i < end && i & 1) to[i] = numbers[from[i / 2] & 15], i++;
#ifdef LOOKED_UP
            int32_t table[16];
            for (int n = 0; n < 16; n++) table[n] = NAME(bits)(numbers[n]);
            for (; i + LOOKED_UP <= end; i += LOOKED_UP) {
                lanes found[2];
                look_up(from + i / 2, table, found);
                NAME(store)(to + i, found[0]);
                NAME(store)(to + i + LOOKED_UP / 2, found[1]);
            }
#endif
            for (; i + 1 < end; i += 2) {
                const uint8_t both = from[i / 2];
                to[i] = numbers[both >> 4];
                to[i + 1] = numbers[both & 15];
            }
            if (i < end) to[i] = numbers[from[i / 2] >> 4];
        }
    }
}

#undef INPUT
#undef WIDE
#undef NARROW
#undef NAME
