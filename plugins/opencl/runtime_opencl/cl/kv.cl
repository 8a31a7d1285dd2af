// The KV cache [2, blocks, block_size, heads, head_dim], row-major, as float or half (KV_F16).

#ifdef KV_F16
#define STORE(value, index) vstore_half_rte(value, index, (__global half *)kv)
#else
#define STORE(value, index) ((__global float *)kv)[index] = (value)
#endif

__kernel void kv_write(__global void *kv, const __global float *k, const __global float *v,
                       const __global int *slot_mapping, int num_columns, ulong num_slots, const __global int *fault)
{
    const int i = get_global_id(0), t = get_global_id(1);
    if (fault[0] || i >= num_columns || slot_mapping[t] < 0)
        return;
    const size_t source = (size_t)t * num_columns + i, target = (size_t)slot_mapping[t] * num_columns + i;
    STORE(k[source], target);
    STORE(v[source], num_slots * num_columns + target);
}
