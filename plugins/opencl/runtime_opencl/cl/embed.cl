// x[t] = weight[token_ids[t]] * scale, one item per unit of a row; the scale comes as the sum of two floats.

__kernel void embed(const __global int *token_ids, const __global uchar *weight, __global float *x, int num_tokens,
                    int num_columns, ulong row_bytes, float scale, float scale_low, int is_scaled,
                    const __global int *fault)
{
    const int unit = get_global_id(0), t = get_global_id(1), start = unit * UNIT;
    if (fault[0] || start >= num_columns)
        return;
    const __global uchar *row = weight + (ulong)token_ids[t] * row_bytes;
    __global float *target = x + (size_t)t * num_columns + start;
    float w[UNIT];
    if (start + UNIT <= num_columns) {
        float8 decoded[PARTS];
        decode_unit(row, unit, decoded);
        for (int part = 0; part < PARTS; part++)
            vstore8(decoded[part], part, w);
    }
#ifdef IS_PLAIN
    else
        for (int i = 0; start + i < num_columns; i++)
            w[i] = decode_one(row, start + i);
#endif
    for (int i = 0; i < UNIT && start + i < num_columns; i++)
        target[i] = is_scaled ? times_exact(w[i], scale, scale_low) : w[i];
}
