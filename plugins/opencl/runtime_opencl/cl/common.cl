// What every kernel shares: the fault record of a region, and reductions over the work-items of a group.
//
// fault[0] is the number of the first check that failed (0: none), fault[1] the index and fault[2] the value that broke
// it. Kernels that follow an index into memory return at once when a check before them has failed: the host reads the
// record once, at the end of the region.

#pragma OPENCL FP_CONTRACT ON

void report_fault(volatile __global int *fault, int check, int index, int value)
{
    if (atomic_cmpxchg(fault, 0, check) == 0) {
        fault[1] = index;
        fault[2] = value;
    }
}

// The order is a fixed tree: the same result in every run. `size` is a power of two. All items get the result.
float sum_items(float value, __local float *scratch, int item, int size)
{
    barrier(CLK_LOCAL_MEM_FENCE);
    scratch[item] = value;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = size / 2; step > 0; step /= 2) {
        if (item < step)
            scratch[item] += scratch[item + step];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    return scratch[0];
}

float max_items(float value, __local float *scratch, int item, int size)
{
    barrier(CLK_LOCAL_MEM_FENCE);
    scratch[item] = value;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = size / 2; step > 0; step /= 2) {
        if (item < step)
            scratch[item] = fmax(scratch[item], scratch[item + step]);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    return scratch[0];
}

float sum_of_8(float8 v)
{
    float4 a = v.lo + v.hi;
    float2 b = a.lo + a.hi;
    return b.x + b.y;
}

// v * factor, where the float64 factor came as the sum of two floats: one rounding, as if the factor were exact.
float times_exact(float v, float high, float low)
{
    float y = v * high;
    return isfinite(y) ? fma(v, high, v * low) : y;
}

// Some drivers' tanh ends short of 1, and then 1 + tanh(-inf) is not 0.
float tanh_of(float x)
{
    const float a = fabs(x);
    if (a > 9.5f)
        return copysign(1.0f, x);
    const float e = expm1(2.0f * a);
    return copysign(e / (e + 2.0f), x);
}
