// y = x weight^T + bias, the weight [N, K] as stored. Two kernels: for few tokens, where reading the weight is all the
// work, and for many, where each decoded weight serves 32 of them.

#define ROWS 4

// LANES work-items share a row of the weight; ROWS rows to a group; TOKENS tokens per pass over the weight.
__kernel __attribute__((reqd_work_group_size(LANES, ROWS, 1)))
void linear_few(const __global float *x, const __global uchar *weight, const __global float *bias, __global float *y,
                int num_tokens, int num_columns, int num_rows, ulong row_bytes, int has_bias)
{
    __local float scratch[ROWS * LANES];
    const int lane = get_local_id(0), slot = get_local_id(1);
    const int row = get_global_id(1), first = get_group_id(2) * TOKENS;
    const __global uchar *stored = weight + (ulong)min(row, num_rows - 1) * row_bytes;
    const int num_units = num_columns / UNIT;
    const __global float *rows[TOKENS];
    float8 sums[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        rows[t] = x + (size_t)min(first + t, num_tokens - 1) * num_columns;
        sums[t] = 0.0f;
    }
    for (int unit = lane; unit < num_units; unit += LANES) {
        float8 w[PARTS];
        decode_unit(stored, unit, w);
        for (int t = 0; t < TOKENS; t++)
            for (int part = 0; part < PARTS; part++)
                sums[t] += w[part] * vload8(unit * PARTS + part, rows[t]);
    }
    for (int t = 0; t < TOKENS; t++) {
        float sum = sum_of_8(sums[t]);
#ifdef IS_PLAIN
        for (int k = num_units * UNIT + lane; k < num_columns; k += LANES)
            sum += decode_one(stored, k) * rows[t][k];
#endif
        sum = sum_items(sum, scratch + slot * LANES, lane, LANES);
        if (lane == 0 && row < num_rows && first + t < num_tokens)
            y[(size_t)(first + t) * num_rows + row] = has_bias ? sum + bias[row] : sum;
    }
}

#define TILE 32
#define UNITS (TILE / UNIT)

// A group of 8 x 8 makes a tile of 32 tokens x 32 rows, 32 columns at a time; an item has 4 x 4 of it in registers.
__kernel __attribute__((reqd_work_group_size(8, 8, 1)))
void linear_many(const __global float *x, const __global uchar *weight, const __global float *bias, __global float *y,
                 int num_tokens, int num_columns, int num_rows, ulong row_bytes, int has_bias)
{
    __local float xs[TILE * TILE], ws[TILE * TILE]; // [column][token], [column][row]
    const int lx = get_local_id(0), ly = get_local_id(1), item = ly * 8 + lx;
    const int first_row = get_group_id(0) * TILE, first_token = get_group_id(1) * TILE;
    float4 sums[4];
    for (int i = 0; i < 4; i++)
        sums[i] = 0.0f;
    for (int k0 = 0; k0 < num_columns; k0 += TILE) {
        const int token = first_token + item / 2;
        const __global float *source = x + (size_t)min(token, num_tokens - 1) * num_columns;
        for (int i = 0; i < 16; i++) {
            const int k = (item & 1) * 16 + i;
            const int is_inside = token < num_tokens && k0 + k < num_columns;
            xs[k * TILE + item / 2] = is_inside ? source[k0 + k] : 0.0f;
        }
        for (int u = item; u < TILE * UNITS; u += 64) {
            const int local_row = u / UNITS, start = k0 + u % UNITS * UNIT;
            const __global uchar *stored = weight + (ulong)min(first_row + local_row, num_rows - 1) * row_bytes;
            __local float *target = ws + u % UNITS * UNIT * TILE + local_row;
            float w[UNIT];
            if (start + UNIT <= num_columns) {
                float8 decoded[PARTS];
                decode_unit(stored, start / UNIT, decoded);
                for (int part = 0; part < PARTS; part++)
                    vstore8(decoded[part], part, w);
            }
#ifdef IS_PLAIN
            else
                for (int i = 0; i < UNIT; i++)
                    w[i] = start + i < num_columns ? decode_one(stored, start + i) : 0.0f;
#endif
            for (int i = 0; i < UNIT; i++)
                target[i * TILE] = w[i];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        float4 parts[4] = {0.0f, 0.0f, 0.0f, 0.0f}; // of this tile: short sums round less than one long one
        for (int k = 0; k < TILE; k++) {
            const float4 w = vload4(lx, ws + k * TILE), v = vload4(ly, xs + k * TILE);
            parts[0] += v.x * w;
            parts[1] += v.y * w;
            parts[2] += v.z * w;
            parts[3] += v.w * w;
        }
        for (int i = 0; i < 4; i++)
            sums[i] += parts[i];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int i = 0; i < 4; i++) {
        const int token = first_token + ly * 4 + i;
        float made[4];
        vstore4(sums[i], 0, made);
        for (int j = 0; j < 4; j++) {
            const int row = first_row + lx * 4 + j;
            if (token < num_tokens && row < num_rows)
                y[(size_t)token * num_rows + row] = has_bias ? made[j] + bias[row] : made[j];
        }
    }
}
