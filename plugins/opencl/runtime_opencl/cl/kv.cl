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

// What follows moves whole blocks: an item per element of a block, a row of the grid per block.

#ifdef KV_F16
#define LOAD(index) vload_half(index, (const __global half *)kv)
typedef ushort stored_t;
#else
#define LOAD(index) ((const __global float *)kv)[index]
typedef uint stored_t;
#endif

__kernel void kv_copy_blocks(__global stored_t *kv, const __global int *source_blocks,
                             const __global int *target_blocks, int block_elements, ulong num_elements,
                             const __global int *fault)
{
    const int i = get_global_id(0), n = get_global_id(1);
    if (fault[0] || i >= block_elements)
        return;
    const size_t source = (size_t)source_blocks[n] * block_elements + i;
    const size_t target = (size_t)target_blocks[n] * block_elements + i;
    kv[target] = kv[source];
    kv[num_elements + target] = kv[num_elements + source];
}

__kernel void kv_export(const __global void *kv, const __global int *block_ids, __global float *data,
                        int block_elements, ulong num_elements, int num_blocks, const __global int *fault)
{
    const int i = get_global_id(0), n = get_global_id(1);
    if (fault[0] || i >= block_elements)
        return;
    const size_t source = (size_t)block_ids[n] * block_elements + i, target = (size_t)n * block_elements + i;
    data[target] = LOAD(source);
    data[(size_t)num_blocks * block_elements + target] = LOAD(num_elements + source);
}

__kernel void kv_import(__global void *kv, const __global float *data, const __global int *block_ids,
                        int block_elements, ulong num_elements, int num_blocks, const __global int *fault)
{
    const int i = get_global_id(0), n = get_global_id(1);
    if (fault[0] || i >= block_elements)
        return;
    const size_t source = (size_t)n * block_elements + i, target = (size_t)block_ids[n] * block_elements + i;
    STORE(data[source], target);
    STORE(data[(size_t)num_blocks * block_elements + source], num_elements + target);
}
