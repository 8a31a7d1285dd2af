// Contents that break a rule are found on the device, where they are; see common.cl for the record.

__kernel void check_range(const __global int *indices, int count, int lowest, int past, int check,
                          __global int *fault)
{
    const int i = get_global_id(0);
    if (i < count && (indices[i] < lowest || indices[i] >= past))
        report_fault(fault, check, i, indices[i]);
}

__kernel void check_distinct(const __global int *indices, int count, int check, __global int *fault)
{
    const int i = get_global_id(0);
    if (i >= count || indices[i] < 0)
        return;
    int is_repeated = 0;
    for (int j = 0; j < i; j++)
        is_repeated |= indices[j] == indices[i];
    if (is_repeated)
        report_fault(fault, check, i, indices[i]);
}

// Per sequence: borders (check), length (check + 1), queries (check + 2), blocks in use (check + 3).
__kernel void check_sequences(const __global int *query_start_loc, const __global int *seq_lens,
                              const __global int *block_table, int num_seqs, int num_rows, int table_width,
                              int num_blocks, int block_size, int window, int is_causal, int check,
                              __global int *fault)
{
    const int s = get_global_id(0);
    if (s >= num_seqs)
        return;
    const int start = query_start_loc[s], end = query_start_loc[s + 1], length = seq_lens[s];
    if (s == 0 && start != 0) {
        report_fault(fault, check, 0, start);
        return;
    }
    if (end < start || end > num_rows) {
        report_fault(fault, check, s + 1, end);
        return;
    }
    if (length < 0 || length > table_width * block_size) {
        report_fault(fault, check + 1, s, length);
        return;
    }
    if (is_causal && length < end - start) {
        report_fault(fault, check + 2, s, length);
        return;
    }
    if (start == end)
        return;
    const int first = window > 0 ? max(0, length - (end - start) - window + 1) : 0;
    for (int i = first / block_size; i * block_size < length; i++) {
        const int block = block_table[(size_t)s * table_width + i];
        if (block < 0 || block >= num_blocks) {
            report_fault(fault, check + 3, s * table_width + i, block);
            return;
        }
    }
}

__kernel void check_apart(const __global int *indices, const __global int *others, int count, int num_others,
                          int check, __global int *fault)
{
    const int i = get_global_id(0);
    if (i >= count)
        return;
    int is_shared = 0;
    for (int j = 0; j < num_others; j++)
        is_shared |= others[j] == indices[i];
    if (is_shared)
        report_fault(fault, check, i, indices[i]);
}
