// The tile registers of AMX in memory: the same interface as tiles_amx.h, for processors without them.
//
// After Intel's Software Developer's Manual, volume 2: TILELOADD, TDPBSUD, TDPBF16PS and their tables of exceptions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

struct Tiles {
    static constexpr const char* NAME = "amx-emulated";

    static void configure(const TileShapes& shapes) {
        State& s = state();
        require(shapes.palette == 1 && shapes.start_row == 0);
        for (int t = 0; t < 8; ++t) require(shapes.rows[t] <= 16 && shapes.row_bytes[t] <= 64);
        s.shapes = shapes;
        s.configured = true;
        std::memset(s.tile, 0, sizeof s.tile);
    }
    static void release() { state().configured = false; }
    template <int T>
    static void zero() {
        std::memset(used<T>(), 0, sizeof(Tile));
    }
    template <int T>
    static void load(const void* from, int64_t stride) {
        zero<T>();
        for (int row = 0; row < rows<T>(); ++row)
            std::memcpy(used<T>()[row], static_cast<const uint8_t*>(from) + row * stride, bytes<T>());
    }
    template <int T>
    static void store(void* to, int64_t stride) {
        for (int row = 0; row < rows<T>(); ++row)
            std::memcpy(static_cast<uint8_t*>(to) + row * stride, used<T>()[row], bytes<T>());
    }
    template <int SUM, int A, int B>
    static void dot_bytes() {
        const int columns = check<SUM, A, B>(), lines = rows<B>();
        for (int m = 0; m < rows<SUM>(); ++m) {
            int32_t sum[16];
            std::memcpy(sum, used<SUM>()[m], sizeof sum);
            const uint8_t* a = used<A>()[m];
            for (int k = 0; k < lines; ++k) {
                const uint8_t* b = used<B>()[k];
                for (int n = 0; n < columns; ++n)
                    for (int i = 0; i < 4; ++i) sum[n] += int8_t(a[4 * k + i]) * b[4 * n + i];
            }
            std::memcpy(used<SUM>()[m], sum, sizeof sum);
        }
    }
    template <int SUM, int A, int B>
    static void dot_bf16() {
        const int columns = check<SUM, A, B>(), lines = rows<B>();
        for (int m = 0; m < rows<SUM>(); ++m) {
            float sum[16], part[2][16] = {};
            std::memcpy(sum, used<SUM>()[m], sizeof sum);
            const uint8_t* a = used<A>()[m];
            for (int k = 0; k < lines; ++k) {
                const uint8_t* b = used<B>()[k];
                for (int i = 0; i < 2; ++i) {
                    const float factor = bf16(a + 4 * k + 2 * i);
                    for (int n = 0; n < columns; ++n)
                        part[i][n] = flushed(std::fma(factor, bf16(b + 4 * n + 2 * i), part[i][n]));
                }
            }
            for (int n = 0; n < columns; ++n) sum[n] = flushed(flushed(sum[n]) + flushed(part[0][n] + part[1][n]));
            std::memcpy(used<SUM>()[m], sum, sizeof sum);
        }
    }

  private:
    typedef uint8_t Tile[16][64];
    struct State {
        TileShapes shapes;
        bool configured = false;
        Tile tile[8];
    };
    static State& state() {
        static thread_local State s;
        return s;
    }
    // What the processor would refuse.
    static void require(bool holds) {
        if (!holds) std::abort();
    }
    template <int T>
    static Tile& used() {
        static_assert(T >= 0 && T < 8);
        require(state().configured && rows<T>() > 0 && bytes<T>() > 0);
        return state().tile[T];
    }
    template <int T>
    static int rows() {
        return state().shapes.rows[T];
    }
    template <int T>
    static int bytes() {
        return state().shapes.row_bytes[T];
    }
    // Returns the columns of the sums.
    template <int SUM, int A, int B>
    static int check() {
        static_assert(SUM != A && SUM != B && A != B);
        require(rows<SUM>() == rows<A>() && bytes<A>() == 4 * rows<B>() && bytes<SUM>() == bytes<B>() &&
                bytes<A>() % 4 == 0 && bytes<SUM>() % 4 == 0);
        return bytes<SUM>() / 4;
    }
    static float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
    static float bf16(const uint8_t* p) {
        uint16_t half;
        std::memcpy(&half, p, 2);
        const uint32_t bits = uint32_t(half) << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return flushed(x);
    }
};

}  // namespace
