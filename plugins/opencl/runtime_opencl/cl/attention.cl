// Softmax attention over the paged cache: a group of KEYS items per query row and head. A tile of KEYS keys at a time,
// an item per key for the scores and an item per element of the head for the values; running maximum and sum as in
// Milakov and Gimelshein 2018. Only visible keys are read. A result depends on the sequence alone, not on what else is
// in the step.

#define KEYS 64
#define DIMS ((HEAD_DIM + KEYS - 1) / KEYS)

#ifdef KV_F16
#define LOAD(index) vload_half(index, (const __global half *)kv)
#define LOAD4(index) vload_half4(0, (const __global half *)kv + (index))
#else
#define LOAD(index) ((const __global float *)kv)[index]
#define LOAD4(index) vload4(0, (const __global float *)kv + (index))
#endif

__kernel __attribute__((reqd_work_group_size(KEYS, 1, 1)))
void attention(const __global float *q, const __global void *kv, const __global int *block_table,
               const __global int *query_start_loc, const __global int *seq_lens, const __global float *sinks,
               const __global float *alibi_slopes, __global float *y, int num_seqs, int table_width, int block_size,
               ulong num_slots, int num_heads, int num_kv_heads, float scale, int window, float softcap,
               int is_causal, int has_sinks, int has_alibi, const __global int *fault)
{
    __local float query[HEAD_DIM], probabilities[KEYS], scratch[KEYS];
    __local size_t slots[KEYS];
    const int item = get_local_id(0), head = get_group_id(0), t = get_group_id(1);
    if (fault[0])
        return;
    const size_t row = ((size_t)t * num_heads + head) * HEAD_DIM;
    int low = 0, high = num_seqs; // the last sequence that starts at or before t; empty ones share their start
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (query_start_loc[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    const int seq = low, start = query_start_loc[seq], end = query_start_loc[seq + 1];
    const int length = seq_lens[seq], position = length - (end - start) + (t - start);
    const int is_padding = t >= end;
    const int past = is_padding ? 0 : is_causal ? position + 1 : length;
    const int first = window > 0 ? max(0, position - window + 1) : 0;
    const int kv_head = head / (num_heads / num_kv_heads);
    const size_t values = num_slots * num_kv_heads * HEAD_DIM;

    for (int d = item; d < HEAD_DIM; d += KEYS)
        query[d] = q[row + d];
    float sums[DIMS];
    for (int i = 0; i < DIMS; i++)
        sums[i] = 0.0f;
    float largest = has_sinks ? sinks[head] : -INFINITY;
    float total = largest == -INFINITY ? 0.0f : 1.0f;
    barrier(CLK_LOCAL_MEM_FENCE);

    for (int base = first; base < past; base += KEYS) {
        const int key = base + item, num_keys = min(KEYS, past - base);
        float score = -INFINITY;
        if (item < num_keys) {
            const int block = block_table[(size_t)seq * table_width + key / block_size];
            const size_t slot = (((size_t)block * block_size + key % block_size) * num_kv_heads + kv_head) * HEAD_DIM;
            float4 parts = 0.0f;
            int d = 0;
            for (; d + 4 <= HEAD_DIM; d += 4)
                parts += vload4(0, query + d) * LOAD4(slot + d);
            float dot = (parts.x + parts.y) + (parts.z + parts.w);
            for (; d < HEAD_DIM; d++)
                dot += query[d] * LOAD(slot + d);
            score = dot * scale;
            if (softcap > 0.0f)
                score = softcap * tanh_of(score / softcap);
            if (has_alibi)
                score -= alibi_slopes[head] * (float)(position - key);
            slots[item] = values + slot;
        }
        const float now = fmax(largest, max_items(score, scratch, item, KEYS));
        const float shift = now == -INFINITY ? 0.0f : now;
        const float correction = exp(largest - shift);
        const float probability = item < num_keys ? exp(score - shift) : 0.0f;
        probabilities[item] = probability;
        total = total * correction + sum_items(probability, scratch, item, KEYS);
        largest = now;
        for (int i = 0; i < DIMS; i++) {
            const int d = item + i * KEYS;
            if (d < HEAD_DIM) {
                float sum = sums[i] * correction;
                for (int j = 0; j < num_keys; j++)
                    sum += probabilities[j] * LOAD(slots[j] + d);
                sums[i] = sum;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int i = 0; i < DIMS; i++) {
        const int d = item + i * KEYS;
        if (d < HEAD_DIM)
            y[row + d] = total == 0.0f ? 0.0f : sums[i] / total;
    }
}
