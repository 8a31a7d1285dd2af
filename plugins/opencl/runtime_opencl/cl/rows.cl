// Over the columns of a row, a group of GROUP items each; and rows moved as they are.

#pragma OPENCL FP_CONTRACT OFF // fused, x * scale - largest would not be 0 for the largest itself

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void softmax(const __global float *x, __global float *y, int num_columns, int is_log, float scale)
{
    __local float scratch[GROUP];
    const int item = get_local_id(0);
    const size_t start = get_group_id(0) * (size_t)num_columns;
    float largest = -INFINITY;
    for (int i = item; i < num_columns; i += GROUP)
        largest = fmax(largest, x[start + i] * scale);
    largest = max_items(largest, scratch, item, GROUP);
    largest = largest == -INFINITY ? 0.0f : largest;
    float sum = 0.0f;
    for (int i = item; i < num_columns; i += GROUP)
        sum += exp(x[start + i] * scale - largest);
    sum = sum_items(sum, scratch, item, GROUP);
    sum = sum == 0.0f ? 1.0f : sum; // nothing but -inf
    const float log_sum = log(sum);
    for (int i = item; i < num_columns; i += GROUP) {
        const float shifted = x[start + i] * scale - largest;
        y[start + i] = is_log ? shifted - log_sum : exp(shifted) / sum;
    }
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void argmax(const __global float *x, __global int *indices, int num_columns)
{
    __local float values[GROUP];
    __local int places[GROUP];
    const int item = get_local_id(0);
    const size_t start = get_group_id(0) * (size_t)num_columns;
    float best = -INFINITY;
    int place = item < num_columns ? item : INT_MAX;
    for (int i = item; i < num_columns; i += GROUP)
        if (x[start + i] > best) { // never true for NaN, which counts as -inf
            best = x[start + i];
            place = i;
        }
    values[item] = best;
    places[item] = place;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = GROUP / 2; step > 0; step /= 2) {
        if (item < step) {
            const float other = values[item + step];
            if (other > values[item] || (other == values[item] && places[item + step] < places[item])) {
                values[item] = other;
                places[item] = places[item + step];
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (item == 0)
        indices[get_group_id(0)] = places[0];
}

__kernel void gather_rows(const __global float *x, const __global int *rows, __global float *y, int num_columns,
                          const __global int *fault)
{
    const int i = get_global_id(0), r = get_global_id(1);
    if (fault[0] || i >= num_columns)
        return;
    y[(size_t)r * num_columns + i] = x[(size_t)rows[r] * num_columns + i];
}

// Columns source_start ... of x to target_start ... of y: one part of concat or split.
__kernel void copy_columns(const __global float *x, __global float *y, int num_columns, int source_width,
                           int source_start, int target_width, int target_start)
{
    const int i = get_global_id(0), t = get_global_id(1);
    if (i < num_columns)
        y[(size_t)t * target_width + target_start + i] = x[(size_t)t * source_width + source_start + i];
}
