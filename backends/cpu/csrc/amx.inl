// Linears on tile registers: integer formats with many rows, bf16 with any number; after an instruction set and `Tiles`.
//
// Everything else is the AVX-512 BF16 variant's own code. Integer sums are the same, and are scaled by the same operations
// in the same order, so that results have the same bits as everywhere; with few rows, where memory is the limit, that
// variant computes them. The tile product of bf16 sums in an order of its own: a row must come out the same alone and in
// a batch, therefore one row takes the tiles too. Only a k that is no multiple of 32, whatever the rows, does not.
#pragma once

#include "formats/kquants.h"
#include "linear.inl"

namespace {

using namespace rt;

constexpr int TILE_M = 16;              // rows of activations in a tile
constexpr int64_t TILED_ROWS = 256;     // rows in a unit of work: their activations stay in the second-level cache
constexpr int64_t FEW_ROWS = 12;        // up to here integer formats leave it to the other variant

// Registers: sums of two panels for two halves of a block (SUM + 2 half + panel), two activations, two weights.
constexpr int SUM = 0, ACTIVATION = 4, WEIGHT = 6;

// k bytes of activations in a row are `row_bytes`; four bytes of them meet one line of a panel.
inline TileShapes shapes_for(int row_bytes) {
    TileShapes shapes;
    for (int t = 0; t < 8; ++t) {
        shapes.rows[t] = uint8_t(t >= WEIGHT ? row_bytes / 4 : TILE_M);
        shapes.row_bytes[t] = uint16_t(t == ACTIVATION || t == ACTIVATION + 1 ? row_bytes : LINE);
    }
    return shapes;
}

inline bool takes_tiles(int32_t kind, int64_t rows, int64_t k) {
    return (kind == AS_INT8 && rows > FEW_ROWS) || (kind == AS_BF16 && k % BLOCK_K == 0);
}

// Tiles of 16 rows, the last filled up with zeros. Per 32 k, as int8: [16][32] int8, [3][16] sums, [16] scales, which are
// those of an Int8Block; as bf16: [16][32] bf16.
template <class I>
struct TileActivations {
    static constexpr int SUMS = TILE_M * Int8Block::SUMS, SCALES = TILE_M * Int8Block::SCALES;

    static int64_t record_bytes(int32_t kind) { return kind == AS_INT8 ? Int8Block::BYTES : 2 * BLOCK_K; }
    static int64_t tile_bytes(int32_t kind, int64_t k) { return k / BLOCK_K * record_bytes(kind) * TILE_M; }
    static int64_t tiles(int64_t rows) { return ceil_div(rows, TILE_M); }
    static size_t bytes(int32_t kind, int64_t rows, int64_t k) { return size_t(tiles(rows) * tile_bytes(kind, k) + 64); }

    static void prepare(int32_t kind, const float* x, int64_t x_stride, const int32_t* gather, int64_t rows, int64_t k,
                        void* dst, int64_t tile0, int64_t tile1) {
        for (int64_t tile = tile0; tile < tile1; ++tile) {
            uint8_t* out = static_cast<uint8_t*>(dst) + tile * tile_bytes(kind, k);
            const int64_t first = tile * TILE_M, count = min_of(TILE_M, rows - first);
            if (count < TILE_M) memset(out, 0, size_t(tile_bytes(kind, k)));
            for (int64_t m = 0; m < count; ++m)
                put_row(kind, x + (gather ? gather[first + m] : first + m) * x_stride, k, out, int(m));
        }
    }

  private:
    // A row by itself, as the other variants round it, is a record after the other.
    static void put_row(int32_t kind, const float* x, int64_t k, uint8_t* out, int m) {
        constexpr int64_t PIECE = 32 * BLOCK_K;
        alignas(64) uint8_t records[PIECE / BLOCK_K * 2 * BLOCK_K];
        const int64_t bytes = record_bytes(kind);
        for (int64_t k0 = 0; k0 < k; k0 += PIECE) {
            const int64_t piece = min_of(PIECE, k - k0);
            Activations<I>::prepare(kind, x + k0, 0, nullptr, 1, piece, records, 0, 1);
            for (int64_t b = 0; b < piece / BLOCK_K; ++b, out += bytes * TILE_M) {
                const uint8_t* record = records + b * bytes;
                if (kind == AS_BF16) {
                    memcpy(out + 2 * BLOCK_K * m, record, 2 * BLOCK_K);
                    continue;
                }
                memcpy(out + BLOCK_K * m, record, BLOCK_K);
                for (int i = 0; i < 3; ++i) memcpy(out + SUMS + 4 * (TILE_M * i + m), record + Int8Block::SUMS + 4 * i, 4);
                memcpy(out + SCALES + 4 * m, record + Int8Block::SCALES, 4);
            }
        }
    }
};

// totals[16][TILE_STRIDE] (+)= a tile of activations x `blocks` blocks of two unpacked panels.
template <class I, class Panel>
struct ByteTiles {
    using V = typename I::V;
    using F = typename I::F;
    static constexpr int SUBS = Panel::SUBS;

    static void multiply(const uint8_t* weights, int64_t stride, const uint8_t* activations, int64_t blocks, int log_bias,
                         float* totals, bool first) {
        alignas(64) int32_t sums[2 * SUBS][TILE_M * ROWS];
        for (int64_t b = 0; b < blocks; ++b) {
            const uint8_t* panel = weights + b * Panel::UNIT_BYTES;
            const uint8_t* a = activations + b * Int8Block::BYTES * TILE_M;
            multiply_sub<0>(panel, stride, a, sums);
            if constexpr (SUBS == 2) multiply_sub<1>(panel, stride, a, sums);
            for (int p = 0; p < 2; ++p)
                scale_panel(panel + p * stride, a, sums + p * SUBS, log_bias, totals + p * ROWS, first && b == 0);
        }
    }

  private:
    template <int S>
    RT_INLINE void multiply_sub(const uint8_t* panel, int64_t stride, const uint8_t* a,
                                int32_t (&sums)[2 * SUBS][TILE_M * ROWS]) {
        constexpr int LINES = GROUPS / SUBS;
        Tiles::load<ACTIVATION + S>(a + Panel::SUB * S, BLOCK_K);
        Tiles::load<WEIGHT>(panel + S * LINES * LINE, LINE);
        Tiles::load<WEIGHT + 1>(panel + stride + S * LINES * LINE, LINE);
        Tiles::zero<SUM + 2 * S>();
        Tiles::zero<SUM + 2 * S + 1>();
        Tiles::dot_bytes<SUM + 2 * S, ACTIVATION + S, WEIGHT>();
        Tiles::dot_bytes<SUM + 2 * S + 1, ACTIVATION + S, WEIGHT + 1>();
        Tiles::store<SUM + 2 * S>(sums[S], LINE);
        Tiles::store<SUM + 2 * S + 1>(sums[SUBS + S], LINE);
    }

    // As multiply_block of microkernel.inl, operation by operation.
    RT_INLINE void scale_panel(const uint8_t* panel, const uint8_t* a, const int32_t (*sums)[TILE_M * ROWS], int log_bias,
                               float* totals, bool first) {
        const uint8_t* negated = a + TileActivations<I>::SUMS + (SUBS == 1 ? 8 * TILE_M : 0);
        for (int part = 0; part < I::PARTS; ++part)
            for (int m = 0; m < TILE_M; ++m) {
                F partial{};
                RT_UNROLL for (int s = 0; s < SUBS; ++s) {
                    const V offset = I::splat(negated + 4 * (s * TILE_M + m));
                    V sum = I::load(&sums[s][m * ROWS + part * I::LANES]);
                    if (log_bias != NO_BIAS) sum += I::shift_left(offset, log_bias);
                    const F product = I::to_float(sum) * Panel::scale({}, panel, 0, s, part);
                    partial = s == 0 ? product : partial + product;
                    if (Panel::HAS_MIN) partial = partial - Panel::minimum({}, panel, 0, s, part) * I::to_float(offset);
                }
                float* total = totals + m * TILE_STRIDE + part * I::LANES;
                const F scaled = partial * I::splat_float(a + TileActivations<I>::SCALES + 4 * m);
                I::store_float(total, (first ? F{} : I::load_float(total)) + scaled);
            }
    }
};

struct TileFormat {
    int32_t format;
    int log_bias, row_bytes;  // bytes of activations that meet a tile of weights
    int64_t (*packed_bytes)(int64_t k);
    int64_t block_bytes;      // of an unpacked panel, per 32 k
    void (*unpack)(const uint8_t* packed, int64_t blocks, uint8_t* out);
    void (*multiply)(const uint8_t*, int64_t, const uint8_t*, int64_t, int, float*, bool);
};

template <template <class> class Format>
constexpr TileFormat tiled(int32_t format) {
    using F = Format<Isa>;
    using Unpacked = UnpackedPanel<Isa, F>;
    // one multiplication for all formats of a shape: what they differ in, the bias, is an argument
    using Shape = BytePanel<Isa, F::SUB, F::HAS_MIN, NO_BIAS, 255>;
    return {format, F::LOG_BIAS, F::SUB, QuantisedKind<Isa, F>::packed_bytes, Shape::UNIT_BYTES, Unpacked::unpack,
            ByteTiles<Isa, Shape>::multiply};
}

constexpr TileFormat TILE_FORMATS[] = {
    tiled<Q4_0Panel>(Q4_0),     tiled<Q4_1Panel>(Q4_1),     tiled<Q5_0Panel>(Q5_0), tiled<Q5_1Panel>(Q5_1),
    tiled<Q8_0Panel>(Q8_0),     tiled<Q2_KPanel>(Q2_K),     tiled<Q3_KPanel>(Q3_K), tiled<Q4_KPanel>(Q4_K),
    tiled<Q5_KPanel>(Q5_K),     tiled<Q6_KPanel>(Q6_K),     tiled<IQ4_NLPanel>(IQ4_NL), tiled<IQ4_XSPanel>(IQ4_XS),
    tiled<MXFP4Panel>(MXFP4),
};
inline const TileFormat& tile_format(int32_t format) {
    const TileFormat* found = TILE_FORMATS;
    while (found->format != format) ++found;
    return *found;
}

// A unit is a pair of panels times a block of rows.
struct TileUnit {
    int64_t panel, second, columns, row0, row1;  // `second`: bytes to the pair's other panel; a lone one is its own

    TileUnit(const Linear& call, int64_t unit, int64_t panel_bytes) {
        const int64_t panels = ceil_div(call.weight->n, ROWS), pairs = ceil_div(panels, 2);
        panel = unit % pairs * 2;
        second = panel + 1 < panels ? panel_bytes : 0;
        columns = min_of(TILE_STRIDE, call.weight->n - panel * ROWS);
        row0 = unit / pairs * TILED_ROWS;
        row1 = min_of(call.rows, row0 + TILED_ROWS);
    }
    static int64_t count(const Linear& call) {
        return ceil_div(ceil_div(call.weight->n, ROWS), 2) * ceil_div(call.rows, TILED_ROWS);
    }
};

inline size_t totals_bytes() { return size_t(TILED_ROWS) * TILE_STRIDE * sizeof(float); }
inline size_t tile_scratch(const Linear& call) {
    if (call.weight->format == BF16) return totals_bytes();
    const int64_t blocks = min_of(call.weight->k, INT8_SLAB) / BLOCK_K;
    return totals_bytes() + 2 * size_t(blocks * tile_format(call.weight->format).block_bytes);
}

inline void run_bytes(const Linear& call, int64_t unit0, int64_t unit1, Scratch& scratch) {
    const TileFormat& format = tile_format(call.weight->format);
    const int64_t k = call.weight->k, panel_bytes = format.packed_bytes(k);
    const int64_t tile_bytes = TileActivations<Isa>::tile_bytes(AS_INT8, k);
    float* totals = reinterpret_cast<float*>(scratch.data);
    uint8_t* unpacked = scratch.data + totals_bytes();
    const TileShapes shapes = shapes_for(format.row_bytes);
    Tiles::configure(shapes);
    for (int64_t i = unit0; i < unit1; ++i) {
        const TileUnit unit(call, i, panel_bytes);
        const uint8_t* packed = call.weight->data + unit.panel * panel_bytes;
        for (int64_t k0 = 0; k0 < k; k0 += INT8_SLAB) {
            const int64_t blocks = min_of(INT8_SLAB, k - k0) / BLOCK_K, stride = blocks * format.block_bytes;
            for (int p = 0; p < 2; ++p)
                format.unpack(packed + format.packed_bytes(k0) + p * unit.second, blocks, unpacked + p * stride);
            for (int64_t row = unit.row0; row < unit.row1; row += TILE_M)
                format.multiply(unpacked, stride,
                                static_cast<const uint8_t*>(call.activations) + row / TILE_M * tile_bytes +
                                    TileActivations<Isa>::tile_bytes(AS_INT8, k0),
                                blocks, format.log_bias, totals + (row - unit.row0) * TILE_STRIDE, k0 == 0);
        }
        finish(call, unit.row0, unit.row1 - unit.row0, unit.panel * ROWS, unit.columns, totals);
    }
    Tiles::release();
}

// One tile of activations, or two (totals1 not null), times two panels.
inline void multiply_bf16(const uint8_t* weights, int64_t second, const uint8_t* a0, const uint8_t* a1, int64_t blocks,
                          float* totals0, float* totals1) {
    constexpr int64_t BLOCK_BYTES = 2 * BLOCK_K * TILE_M, STRIDE = TILE_STRIDE * sizeof(float);
    Tiles::zero<SUM>();
    Tiles::zero<SUM + 1>();
    Tiles::zero<SUM + 2>();
    Tiles::zero<SUM + 3>();
    for (int64_t b = 0; b < blocks; ++b) {
        Tiles::load<ACTIVATION>(a0 + b * BLOCK_BYTES, 2 * BLOCK_K);
        Tiles::load<WEIGHT>(weights + b * BLOCK_BYTES, LINE);
        Tiles::load<WEIGHT + 1>(weights + second + b * BLOCK_BYTES, LINE);
        Tiles::dot_bf16<SUM, ACTIVATION, WEIGHT>();
        Tiles::dot_bf16<SUM + 1, ACTIVATION, WEIGHT + 1>();
        if (!totals1) continue;
        Tiles::load<ACTIVATION + 1>(a1 + b * BLOCK_BYTES, 2 * BLOCK_K);
        Tiles::dot_bf16<SUM + 2, ACTIVATION + 1, WEIGHT>();
        Tiles::dot_bf16<SUM + 3, ACTIVATION + 1, WEIGHT + 1>();
    }
    Tiles::store<SUM>(totals0, STRIDE);
    Tiles::store<SUM + 1>(totals0 + ROWS, STRIDE);
    if (!totals1) return;
    Tiles::store<SUM + 2>(totals1, STRIDE);
    Tiles::store<SUM + 3>(totals1 + ROWS, STRIDE);
}

inline void run_bf16(const Linear& call, int64_t unit0, int64_t unit1, Scratch& scratch) {
    const int64_t k = call.weight->k, panel_bytes = PlainKind<Isa, BF16Panel<Isa>>::packed_bytes(k);
    const int64_t tile_bytes = TileActivations<Isa>::tile_bytes(AS_BF16, k);
    float* totals = reinterpret_cast<float*>(scratch.data);
    Tiles::configure(shapes_for(2 * BLOCK_K));
    for (int64_t i = unit0; i < unit1; ++i) {
        const TileUnit unit(call, i, panel_bytes);
        const uint8_t* weights = call.weight->data + unit.panel * panel_bytes;
        for (int64_t row = unit.row0; row < unit.row1; row += 2 * TILE_M) {
            const uint8_t* a = static_cast<const uint8_t*>(call.activations) + row / TILE_M * tile_bytes;
            float* to = totals + (row - unit.row0) * TILE_STRIDE;
            const bool both = row + TILE_M < unit.row1;
            multiply_bf16(weights, unit.second, a, a + tile_bytes, k / BLOCK_K, to, both ? to + TILE_M * TILE_STRIDE : nullptr);
        }
        finish(call, unit.row0, unit.row1 - unit.row0, unit.panel * ROWS, unit.columns, totals);
    }
    Tiles::release();
}

// --- the table

inline const Kernels& rest() { return *kernels_avx512bf16(); }

inline bool takes_tiles(const Linear& call) {
    return takes_tiles(rest().activation_kind(call.weight->format), call.rows, call.weight->k);
}
// Without k, nobody can tell which of the two layouts it will be: tiles are counted by what is a multiple of both.
constexpr int64_t COUNTED_ROWS = 48;
static_assert(COUNTED_ROWS % TILE_M == 0 && COUNTED_ROWS % TILE_ROWS == 0);

inline int64_t activation_tiles_of(int32_t, int64_t rows) { return ceil_div(rows, COUNTED_ROWS); }
inline void prepare_of(int32_t kind, const float* x, int64_t x_stride, const int32_t* gather, int64_t rows, int64_t k,
                       void* dst, int64_t tile0, int64_t tile1) {
    const bool tiled = takes_tiles(kind, rows, k);
    const int64_t each = COUNTED_ROWS / (tiled ? TILE_M : TILE_ROWS);
    const int64_t tiles = tiled ? TileActivations<Isa>::tiles(rows) : rest().activation_tiles(kind, rows);
    (tiled ? TileActivations<Isa>::prepare : rest().prepare)(kind, x, x_stride, gather, rows, k, dst, tile0 * each,
                                                            min_of(tile1 * each, tiles));
}
inline size_t activation_bytes_of(int32_t kind, int64_t rows, int64_t k) {
    return takes_tiles(kind, rows, k) ? TileActivations<Isa>::bytes(kind, rows, k) : rest().activation_bytes(kind, rows, k);
}
inline int64_t units_of(const Linear& call) {
    return takes_tiles(call) ? TileUnit::count(call) : rest().linear_units(call);
}
inline size_t scratch_of(const Linear& call) {
    return takes_tiles(call) ? tile_scratch(call) : rest().linear_scratch(call);
}
inline void run(const Linear& call, int64_t unit0, int64_t unit1, Scratch& scratch) {
    if (!takes_tiles(call)) return rest().linear(call, unit0, unit1, scratch);
    assert(scratch.bytes >= tile_scratch(call));
    (call.weight->format == BF16 ? run_bf16 : run_bytes)(call, unit0, unit1, scratch);
}

inline Kernels tile_table() {
    Kernels all = rest();
    all.name = Tiles::NAME;
    all.activation_bytes = activation_bytes_of;
    all.activation_tiles = activation_tiles_of;
    all.prepare = prepare_of;
    all.linear_units = units_of;
    all.linear_scratch = scratch_of;
    all.linear = run;
    return all;
}

}  // namespace
