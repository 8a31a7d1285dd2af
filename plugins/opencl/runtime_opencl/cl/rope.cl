// Rotary position embedding: an item per pair that is rotated, and per element that passes.

__kernel void rope(const __global float *x, const __global int *positions, const __global float *inv_freq,
                   __global float *y, int num_columns, int head_dim, int num_freqs, int is_interleaved, float scale,
                   const __global int *fault)
{
    const int per_head = head_dim - num_freqs;
    const int i = get_global_id(0), t = get_global_id(1), head = i / per_head, j = i % per_head;
    if (fault[0] || head * head_dim >= num_columns)
        return;
    const size_t start = (size_t)t * num_columns + head * head_dim;
    if (j >= num_freqs) {
        y[start + num_freqs + j] = x[start + num_freqs + j];
        return;
    }
    const size_t first = start + (is_interleaved ? 2 * j : j), second = first + (is_interleaved ? 1 : num_freqs);
    const float angle = (float)positions[t] * inv_freq[j];
    const float c = cos(angle) * scale, s = sin(angle) * scale;
    const float a = x[first], b = x[second];
    y[first] = a * c - b * s;
    y[second] = b * c + a * s;
}
