// Weights and linears of one instruction set: packing, work units, the epilogue, and the table entries.
#pragma once

#include <cassert>

#include "microkernel.inl"
#include "panels.inl"

namespace {

using namespace rt;

constexpr int64_t DIRECT_ROWS = 3;    // up to here a unit is one panel, read once, straight from its packed form
constexpr int64_t ROW_BLOCK = 264;    // rows whose activations stay in the second-level cache
constexpr int64_t INT8_SLAB = 1024;   // k whose unpacked panels stay near the first-level cache
constexpr int64_t PLAIN_SLAB = 256;   // the same without compression; also where chains of addition end

// y = epilogue(totals) for `rows` rows from `row0` and `columns` columns from `column0`.
inline void finish(const Linear& call, int64_t row0, int64_t rows, int64_t column0, int64_t columns, const float* totals) {
    for (int64_t m = 0; m < rows; ++m, totals += TILE_STRIDE) {
        const int64_t to = call.scatter ? call.scatter[row0 + m] : row0 + m;
        float* y = call.y + to * call.y_stride + column0;
        const float* bias = call.bias ? call.bias + column0 : nullptr;
        const float* residual = call.residual ? call.residual + to * call.y_stride + column0 : nullptr;
        for (int64_t c = 0; c < columns; ++c) {
            float value = totals[c];
            if (bias) value += bias[c];
            if (call.row_weights) value *= call.row_weights[row0 + m];
            if (residual) value += residual[c];
            y[c] = call.accumulate ? y[c] + value : value;
        }
    }
}

// Rows of y lie far apart: each would be a wait for memory when it is written.
inline void expect(const Linear& call, int64_t row0, int64_t rows, int64_t column0) {
    for (int64_t m = 0; m < rows; ++m) {
        const int64_t to = call.scatter ? call.scatter[row0 + m] : row0 + m;
        const float* y = call.y + to * call.y_stride + column0;
        __builtin_prefetch(y, 1, 3);
        __builtin_prefetch(y + ROWS, 1, 3);
    }
}

// How rows are cut: one unit per panel when they are few, else blocks of rows times pairs of panels.
struct Cut {
    int64_t panels, row_block, row_blocks, pairs;
    bool direct;

    explicit Cut(const Linear& call) {
        panels = ceil_div(call.weight->n, ROWS);
        direct = call.rows <= DIRECT_ROWS;
        row_blocks = ceil_div(call.rows, ROW_BLOCK);
        row_block = row_blocks ? ceil_div(ceil_div(call.rows, row_blocks), TILE_ROWS) * TILE_ROWS : 0;
        pairs = ceil_div(panels, 2);
    }
    int64_t units() const { return direct ? panels : pairs * row_blocks; }
};

// The loops around the microkernel. `Kind` supplies widths and the microkernels: QuantisedKind or PlainKind below.
template <class I, class Kind>
struct Loops {
    static void run(const Linear& call, int64_t unit0, int64_t unit1, Scratch& scratch) {
        assert(scratch.bytes >= scratch_bytes(call));
        const Cut cut(call);
        for (int64_t unit = unit0; unit < unit1; ++unit) {
            if (cut.direct) run_panel(call, unit);
            else run_pair(call, cut, unit, scratch);
        }
    }

    static size_t scratch_bytes(const Linear& call) {
        const Cut cut(call);
        return cut.direct ? 0 : totals_bytes(cut) + 2 * Kind::unpacked_bytes(min_of(call.weight->k, Kind::SLAB));
    }

  private:
    static size_t totals_bytes(const Cut& cut) { return size_t(cut.row_block) * TILE_STRIDE * sizeof(float); }

    static void run_panel(const Linear& call, int64_t panel) {
        const int64_t k = call.weight->k, panel_bytes = Kind::packed_bytes(k), row_bytes = Kind::activation_bytes(k);
        const uint8_t* weights = call.weight->data + panel * panel_bytes;
        const int64_t columns = min_of(ROWS, call.weight->n - panel * ROWS);
        alignas(64) float totals[TILE_ROWS * TILE_STRIDE];
        for (int64_t row = 0; row < call.rows; row += TILE_ROWS) {
            const int width = int(min_of(TILE_ROWS, call.rows - row));
            const uint8_t* activations = static_cast<const uint8_t*>(call.activations) + row * row_bytes;
            Kind::multiply_packed(width, weights, activations, k, totals);
            finish(call, row, width, panel * ROWS, columns, totals);
        }
    }

    static void run_pair(const Linear& call, const Cut& cut, int64_t unit, Scratch& scratch) {
        const int64_t k = call.weight->k, panel_bytes = Kind::packed_bytes(k), row_bytes = Kind::activation_bytes(k);
        const int64_t panel = unit % cut.pairs * 2, row0 = unit / cut.pairs * cut.row_block;
        const int64_t row1 = min_of(call.rows, row0 + cut.row_block);
        const int64_t columns = min_of(TILE_STRIDE, call.weight->n - panel * ROWS);
        const uint8_t* packed = call.weight->data + panel * panel_bytes;
        const int64_t second = panel + 1 < cut.panels ? panel_bytes : 0;  // a lone panel is its own neighbour
        float* totals = reinterpret_cast<float*>(scratch.data);
        uint8_t* unpacked = scratch.data + totals_bytes(cut);
        const int64_t tiles = (row1 - row0) / TILE_ROWS + (row1 - row0 < TILE_ROWS);  // whole ones

        for (int64_t k0 = 0; k0 < k; k0 += Kind::SLAB) {
            const int64_t slab = min_of(Kind::SLAB, k - k0);
            const uint8_t* weights = packed + Kind::packed_bytes(k0);
            const bool last = k0 + slab >= k;
            const int64_t next = last ? min_of(Kind::SLAB, k) : min_of(Kind::SLAB, k - k0 - slab);
            Ahead ahead{last ? packed + 2 * second : weights + Kind::packed_bytes(slab), second,
                        ceil_div(Kind::packed_bytes(next), tiles * Kind::steps(slab))};
            int64_t stride = second;
            if (Kind::UNPACKS) {
                stride = Kind::unpacked_bytes(slab);
                for (int i = 0; i < 2; ++i) Kind::unpack(weights + i * second, slab, unpacked + i * stride);
                weights = unpacked;
            }
            for (int64_t row = row0; row < row1; row += TILE_ROWS) {
                const int width = int(min_of(TILE_ROWS, row1 - row));
                const uint8_t* activations = static_cast<const uint8_t*>(call.activations) + row * row_bytes +
                                             Kind::activation_bytes(k0) * width;
                float* tile = totals + (row - row0) * TILE_STRIDE;
                if (last) expect(call, row, width, panel * ROWS);
                Kind::multiply_pair(width, weights, stride, activations, slab, tile, k0 == 0, ahead);
                if (last) finish(call, row, width, panel * ROWS, columns, tile);
                ahead.at += Kind::steps(slab) * ahead.step;
            }
        }
    }
};

// Runs a microkernel of a tile's width on one panel or two: two lie side by side in registers where there are 32 of them,
// else one follows the other.
using Microkernel = void (*)(const uint8_t*, int64_t, const uint8_t*, int64_t, float*, bool, int, Ahead);

template <class I, int PANELS>
inline void call_kernel(const Microkernel* kernels, int width, const uint8_t* weights, int64_t stride,
                        const uint8_t* activations, int64_t count, float* totals, bool first, Ahead ahead) {
    constexpr int NR = I::TILE_PANELS < PANELS ? I::TILE_PANELS : PANELS;
    for (int i = 0; i < PANELS; i += NR) {
        const uint8_t* panel = weights + i * stride;
        if (I::TILED) {
            kernels[width - 1](panel, stride, activations, count, totals + i * ROWS, first, width, ahead);
            ahead.at += ahead.panel_bytes;
        } else {
            for (int m = 0; m < width; ++m)
                kernels[0](panel, stride, activations + 4 * m, count, totals + m * TILE_STRIDE + i * ROWS, first, width,
                           ahead);
        }
    }
}

template <class I, class Format, int NR>
struct Int8Kernels {
    template <int MR>
    static constexpr Microkernel kernel = multiply_int8<I, Format, I::TILED ? MR : 1, NR>;
    static constexpr Microkernel BY_WIDTH[] = {kernel<1>, kernel<2>, kernel<3>, kernel<4>, kernel<5>, kernel<6>};
};
template <class I, class Format, int NR>
struct PlainKernels {
    template <int MR>
    static constexpr Microkernel kernel = multiply_plain<I, Format, I::TILED ? MR : 1, NR>;
    static constexpr Microkernel BY_WIDTH[] = {kernel<1>, kernel<2>, kernel<3>, kernel<4>, kernel<5>, kernel<6>};
};

template <class I, class Format>
struct QuantisedKind {
    using Unpacked = UnpackedPanel<I, Format>;
    static constexpr int64_t SLAB = INT8_SLAB;
    // Not where tiles are one panel wide: the unpacked bytes are loaded so often that decoding them again is cheaper.
    static constexpr bool UNPACKS = !Format::DIRECT && (I::TILE_PANELS == 2 || !I::TILED);
    using Large = std::conditional_t<UNPACKS, typename Unpacked::Base, Format>;

    static int64_t packed_bytes(int64_t k) { return ceil_div(k, BLOCK_K * Format::BLOCKS) * Format::UNIT_BYTES; }
    static int64_t unpacked_bytes(int64_t k) { return UNPACKS ? k / BLOCK_K * Unpacked::UNIT_BYTES : 0; }
    static int64_t activation_bytes(int64_t k) { return k / BLOCK_K * Int8Block::BYTES; }
    static int64_t steps(int64_t k) { return k / BLOCK_K; }
    static void unpack(const uint8_t* packed, int64_t k, uint8_t* out) { Unpacked::unpack(packed, k / BLOCK_K, out); }

    static void multiply_packed(int width, const uint8_t* w, const uint8_t* a, int64_t k, float* totals) {
        call_kernel<I, 1>(Int8Kernels<I, Format, 1>::BY_WIDTH, width, w, 0, a, steps(k), totals, true, Ahead{});
    }
    static void multiply_pair(int width, const uint8_t* w, int64_t stride, const uint8_t* a, int64_t k, float* totals,
                              bool first, Ahead ahead) {
        call_kernel<I, 2>(Int8Kernels<I, Large, I::TILE_PANELS>::BY_WIDTH, width, w, stride, a, steps(k), totals, first,
                          ahead);
    }

    static void pack(const uint8_t* src, int64_t n, int64_t k, int64_t panel0, int64_t panel1, uint8_t* dst) {
        static const uint8_t zeros[Format::BLOCK_BYTES + 64] = {};
        constexpr int PER_UNIT = BLOCK_K * Format::BLOCKS / Format::BLOCK;
        const int64_t blocks = k / Format::BLOCK, units = ceil_div(blocks, PER_UNIT);
        for (int64_t panel = panel0; panel < panel1; ++panel) {
            uint8_t* unit = dst + panel * packed_bytes(k);
            const uint8_t* rows[ROWS];
            int64_t step[ROWS];
            for (int r = 0; r < ROWS; ++r) {
                const bool inside = panel * ROWS + r < n;
                rows[r] = inside ? src + (panel * ROWS + r) * blocks * Format::BLOCK_BYTES : zeros;
                step[r] = inside ? Format::BLOCK_BYTES : 0;
            }
            for (int64_t u = 0; u < units; ++u, unit += Format::UNIT_BYTES)
                for (int b = 0; b < PER_UNIT; ++b) {
                    if (u * PER_UNIT + b == blocks)
                        for (int r = 0; r < ROWS; ++r) rows[r] = zeros, step[r] = 0;
                    Format::pack(rows, b, unit);
                    for (int r = 0; r < ROWS; ++r) rows[r] += step[r];
                }
        }
    }
};

template <class I, class Format>
struct PlainKind {
    static constexpr int64_t SLAB = PLAIN_SLAB;
    static constexpr bool UNPACKS = false;
    static constexpr int ACTIVATION_BYTES = Format::STEP == 4 ? 2 : 4;

    static int64_t packed_bytes(int64_t k) { return padded(k) * ROWS * Format::ELEMENT; }
    static int64_t unpacked_bytes(int64_t) { return 0; }
    static int64_t activation_bytes(int64_t k) { return padded(k) * ACTIVATION_BYTES; }
    static int64_t steps(int64_t k) { return padded(k) / Format::STEP; }
    static void unpack(const uint8_t*, int64_t, uint8_t*) {}

    static void multiply_packed(int width, const uint8_t* w, const uint8_t* a, int64_t k, float* totals) {
        for (int64_t k0 = 0; k0 < k; k0 += SLAB)
            call_kernel<I, 1>(PlainKernels<I, Format, 1>::BY_WIDTH, width, w + packed_bytes(k0), 0,
                              a + activation_bytes(k0) * width, steps(min_of(SLAB, k - k0)), totals, k0 == 0, Ahead{});
    }
    static void multiply_pair(int width, const uint8_t* w, int64_t stride, const uint8_t* a, int64_t k, float* totals,
                              bool first, Ahead ahead) {
        call_kernel<I, 2>(PlainKernels<I, Format, I::TILE_PANELS>::BY_WIDTH, width, w, stride, a, steps(k), totals, first,
                          ahead);
    }

    static void pack(const uint8_t* src, int64_t n, int64_t k, int64_t panel0, int64_t panel1, uint8_t* dst) {
        for (int64_t panel = panel0; panel < panel1; ++panel) {
            uint8_t* out = dst + panel * packed_bytes(k);
            const int64_t rows = min_of(ROWS, n - panel * ROWS);
            if (rows < ROWS || padded(k) != k) memset(out, 0, packed_bytes(k));
            const uint8_t* from = src + panel * ROWS * k * Format::ELEMENT;
            for (int64_t i = 0; i < k; ++i)
                for (int64_t r = 0; r < rows; ++r)
                    Format::put(out, i, int(r), from + (r * k + i) * Format::ELEMENT);
        }
    }
};

}  // namespace
