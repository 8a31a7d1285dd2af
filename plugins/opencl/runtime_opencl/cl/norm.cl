// rms_norm and layer_norm: a group of GROUP items per run of `size` elements.

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void rms_norm(const __global float *x, const __global float *weight, __global float *y, int size, float eps,
              float weight_offset)
{
    __local float scratch[GROUP];
    const int item = get_local_id(0);
    const size_t start = get_group_id(0) * (size_t)size;
    float sum = 0.0f;
    for (int i = item; i < size; i += GROUP)
        sum += x[start + i] * x[start + i];
    const float root = sqrt(sum_items(sum, scratch, item, GROUP) / (float)size + eps);
    for (int i = item; i < size; i += GROUP)
        y[start + i] = x[start + i] / root * (weight[i] + weight_offset);
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void layer_norm(const __global float *x, const __global float *weight, const __global float *bias, __global float *y,
                int size, float eps, int has_bias)
{
    __local float scratch[GROUP];
    const int item = get_local_id(0);
    const size_t start = get_group_id(0) * (size_t)size;
    float sum = 0.0f;
    for (int i = item; i < size; i += GROUP)
        sum += x[start + i];
    const float mean = sum_items(sum, scratch, item, GROUP) / (float)size;
    sum = 0.0f;
    for (int i = item; i < size; i += GROUP) {
        const float centred = x[start + i] - mean;
        sum += centred * centred;
    }
    const float root = sqrt(sum_items(sum, scratch, item, GROUP) / (float)size + eps);
    for (int i = item; i < size; i += GROUP) {
        const float normed = (x[start + i] - mean) / root * weight[i];
        y[start + i] = has_bias ? normed + bias[i] : normed;
    }
}
