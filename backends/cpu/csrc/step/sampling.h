// Choosing among the columns of a row without sorting them all.
#pragma once

#include "program.h"

namespace rt {

struct Filters {
    float temperature;
    int32_t top_k;
    float top_p, min_p, typical_p;
};

// One thread's working memory for rows of n columns.
class Chooser {
public:
    Chooser(const RowKernels& rows, int64_t n, uint8_t* memory);
    static size_t bytes(int64_t n);

    // The k largest, descending; the lower index first among equals; NaN counts as -inf.
    void topk(const float* x, int64_t k, float* values, int32_t* indices);
    // One token, as the operation `sample` declares; -1 where the largest logit is not finite.
    int32_t sample(const float* x, const Filters& filters, float uniform);

private:
    void carve(uint8_t* memory, size_t* used);
    int64_t collect_largest(const float* x, int64_t k);
    void keep_top_k(const float* x, int64_t k);
    bool keep_from(const float* x, float least);
    void keep_near(const float* x, double top_p, double* total);
    // Whether no filter has left fewer columns than it is worth to look for candidates among.
    bool is_long() const { return all_ && n_ >= 4096; }
    void keep_nucleus(const float* x, double top_p);
    void keep_probable(double min_p, const float* x);
    void keep_typical(double mass, double total, const float* x);
    template <class Test>
    void keep(const float* x, const Test& test);
    double weigh(const float* x);
    struct Place {
        int64_t first;
        double before, wanted;
    };
    Place find_group(float uniform);
    static int64_t find(const double* weights, int64_t n, double before, double wanted);
    int64_t draw(float uniform);
    int64_t draw_of_all(const float* x, float uniform);

    const RowKernels& rows_;
    const int64_t n_;
    bool all_ = true;       // every column survives: ids_ and values_ are not used
    int64_t count_ = 0;     // survivors
    float top_ = 0;
    double temperature_ = 1;
    float *values_ = nullptr, *maxima_ = nullptr;
    int32_t *ids_ = nullptr, *order_ = nullptr;
    double *weights_ = nullptr, *distance_ = nullptr, *buckets_ = nullptr;
};

}  // namespace rt
