// Decoding of stored weights. WEIGHT_<FORMAT> is defined by the host; each format defines
//
//   UNIT                          weights that are decoded at a time, 16 or 32
//   decode_unit(row, unit, w)     weights unit * UNIT ... of a row, as float8 w[UNIT / 8]
//   IS_PLAIN, decode_one(row, k)  formats without blocks, whose rows may end inside a unit
//
// Block layouts are those of GGUF. Halves are read by vload_half, which is core OpenCL C: cl_khr_fp16 is not needed.

#define PARTS (UNIT / 8)

float half_at(const __global uchar *p)
{
    return vload_half(0, (const __global half *)p);
}

// Blocks have an even number of bytes: two at a time are the widest loads that all of them allow.
uchar8 bytes_at(int i, const __global uchar *p)
{
    return as_uchar8(vload4(i, (const __global ushort *)p));
}

#if defined(WEIGHT_F32)

#define UNIT 16
#define IS_PLAIN 1

float decode_one(const __global uchar *row, int k)
{
    return ((const __global float *)row)[k];
}

void decode_unit(const __global uchar *row, int unit, float8 *w)
{
    w[0] = vload8(2 * unit, (const __global float *)row);
    w[1] = vload8(2 * unit + 1, (const __global float *)row);
}

#elif defined(WEIGHT_F16)

#define UNIT 16
#define IS_PLAIN 1

float decode_one(const __global uchar *row, int k)
{
    return vload_half(k, (const __global half *)row);
}

void decode_unit(const __global uchar *row, int unit, float8 *w)
{
    w[0] = vload_half8(2 * unit, (const __global half *)row);
    w[1] = vload_half8(2 * unit + 1, (const __global half *)row);
}

#elif defined(WEIGHT_BF16)

#define UNIT 16
#define IS_PLAIN 1

float decode_one(const __global uchar *row, int k)
{
    return as_float((uint)((const __global ushort *)row)[k] << 16);
}

void decode_unit(const __global uchar *row, int unit, float8 *w)
{
    for (int part = 0; part < PARTS; part++)
        w[part] = as_float8(convert_uint8(vload8(unit * PARTS + part, (const __global ushort *)row)) << 16);
}

#elif defined(WEIGHT_Q8_0)

// half scale, 32 signed bytes
#define UNIT 32

void decode_unit(const __global uchar *row, int unit, float8 *w)
{
    const __global uchar *block = row + (size_t)unit * 34;
    float scale = half_at(block);
    for (int part = 0; part < PARTS; part++)
        w[part] = convert_float8(as_char8(bytes_at(part, block + 2))) * scale;
}

#elif defined(WEIGHT_Q4_0)

// half scale, 16 bytes: weights 0..15 in the low nibbles, 16..31 in the high ones, minus 8
#define UNIT 32

void decode_unit(const __global uchar *row, int unit, float8 *w)
{
    const __global uchar *block = row + (size_t)unit * 18;
    float scale = half_at(block);
    for (int part = 0; part < 2; part++) {
        uchar8 q = bytes_at(part, block + 2);
        w[part] = (convert_float8(q & (uchar)15) - 8.0f) * scale;
        w[part + 2] = (convert_float8(q >> (uchar)4) - 8.0f) * scale;
    }
}

#elif defined(WEIGHT_Q4_K)

// half d, half dmin, 12 bytes of eight 6-bit scales and minima, 128 bytes: four runs of 64 weights, of which the first
// 32 are in the low nibbles
#define UNIT 32

void decode_unit(const __global uchar *row, int unit, float8 *w)
{
    const __global uchar *block = row + (size_t)(unit / 8) * 144;
    const __global uchar *s = block + 4;
    int j = unit % 8;
    int scale_bits = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
    int min_bits = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
    float scale = half_at(block) * (float)scale_bits;
    float minimum = half_at(block + 2) * (float)min_bits;
    const __global uint2 *q = (const __global uint2 *)(block + 16 + (j / 2) * 32); // blocks are whole runs of 16 bytes
    uchar shift = (uchar)((j & 1) * 4);
    for (int part = 0; part < PARTS; part++)
        w[part] = convert_float8((as_uchar8(q[part]) >> shift) & (uchar)15) * scale - minimum;
}

#elif defined(WEIGHT_Q6_K)

// 128 bytes of low nibbles, 64 bytes of two high bits each, 16 signed scales (one per 16 weights), half d; two halves
// of 128 weights, each in four runs of 32
#define UNIT 32

void decode_unit(const __global uchar *row, int unit, float8 *w)
{
    const __global uchar *block = row + (size_t)(unit / 8) * 210;
    int side = (unit % 8) / 4, run = unit % 4;
    const __global uchar *low = block + side * 64 + (run & 1) * 32;
    const __global uchar *high = block + 128 + side * 32;
    const __global char *scales = (const __global char *)(block + 192) + side * 8 + run * 2;
    uchar low_shift = (uchar)((run >> 1) * 4), high_shift = (uchar)(run * 2);
    float d = half_at(block + 208);
    for (int part = 0; part < PARTS; part++) {
        uchar8 q = (bytes_at(part, low) >> low_shift) & (uchar)15;
        q |= ((bytes_at(part, high) >> high_shift) & (uchar)3) << (uchar)4;
        w[part] = (convert_float8(q) - 32.0f) * (d * (float)scales[part / 2]);
    }
}

#else
#error "no weight format is defined"
#endif
