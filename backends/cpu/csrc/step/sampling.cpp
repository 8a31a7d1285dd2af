#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <numeric>

namespace rt {

namespace {

constexpr int64_t kGroup = 32;                       // columns whose largest stands for them
constexpr int64_t kBuckets = 2048;
constexpr double kRange = 40;                        // e^-40 of the largest weight and less share the last bucket
constexpr double kLargestUniform = 1 - 0x1p-24;      // a generator's f64 may round to 1 when it is stored in f32

}  // namespace

void Chooser::carve(uint8_t* memory, size_t* used) {
    Carver carver(memory);
    values_ = carver.take<float>(n_);
    maxima_ = carver.take<float>((n_ + kGroup - 1) / kGroup);
    ids_ = carver.take<int32_t>(n_);
    order_ = carver.take<int32_t>(n_);
    weights_ = carver.take<double>(n_);
    distance_ = carver.take<double>(n_);
    buckets_ = carver.take<double>(kBuckets);
    *used = carver.used();
}

Chooser::Chooser(const RowKernels& rows, int64_t n, uint8_t* memory) : rows_(rows), n_(n) {
    size_t used;
    carve(memory, &used);
}

size_t Chooser::bytes(int64_t n) {
    size_t used;
    Chooser(*rows_base(), n, nullptr).carve(nullptr, &used);
    return used;
}

// Ids, ascending, of all columns that may be among the k largest. The k-th largest of the groups' maxima is no larger
// than the k-th largest column, so that whatever lies below it can be dropped.
int64_t Chooser::collect_largest(const float* x, int64_t k) {
    const int64_t groups = (n_ + kGroup - 1) / kGroup;
    float least = -INFINITY;
    if (k <= groups) {
        rows_.maxima(x, n_, kGroup, maxima_);
        std::nth_element(maxima_, maxima_ + (k - 1), maxima_ + groups, std::greater<float>());
        least = maxima_[k - 1];
    }
    return rows_.collect(x, n_, least, ids_);
}

void Chooser::topk(const float* x, int64_t k, float* values, int32_t* indices) {
    const int64_t count = collect_largest(x, k);
    const auto value = [&](int32_t i) { return std::isnan(x[i]) ? -INFINITY : x[i]; };
    const auto before = [&](int32_t a, int32_t b) { return value(a) > value(b) || (value(a) == value(b) && a < b); };
    std::partial_sort(ids_, ids_ + k, ids_ + count, before);
    for (int64_t i = 0; i < k; i++) indices[i] = ids_[i], values[i] = x[ids_[i]];
}

// weights_[i] = exp((x - top) / temperature) of the survivors; returns their sum.
double Chooser::weigh(const float* x) {
    if (all_) return rows_.weights(x, n_, top_, temperature_, weights_);
    return rows_.weights(values_, count_, top_, temperature_, weights_);
}

void Chooser::keep_top_k(const float* x, int64_t k) {
    const int64_t found = collect_largest(x, k);
    for (int64_t i = 0; i < found; i++) values_[i] = x[ids_[i]];
    std::nth_element(values_, values_ + (k - 1), values_ + found, std::greater<float>());
    // Logits that differ may have equal scores: the border is a score.
    const auto score = [&](float v) { return ((double)v - (double)top_) / temperature_; };
    const double least = score(values_[k - 1]);
    count_ = 0;
    for (int64_t i = 0; i < found; i++)
        if (score(x[ids_[i]]) >= least) ids_[count_] = ids_[i], values_[count_++] = x[ids_[i]];
    all_ = false;
}

template <class Test>
void Chooser::keep(const float* x, const Test& test) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; i++) {
        if (!test(i)) continue;
        values_[kept] = all_ ? x[i] : values_[i];
        ids_[kept++] = all_ ? (int32_t)i : ids_[i];
    }
    count_ = kept;
    all_ = false;
}

// Only columns of at least `least`, with their weights; false, and nothing changed, where these are too many to be
// cheaper than all.
bool Chooser::keep_from(const float* x, float least) {
    const int64_t found = rows_.collect(x, n_, least, ids_);
    if (found > n_ / 4) return false;
    for (int64_t i = 0; i < found; i++) values_[i] = x[ids_[i]];
    count_ = found;
    all_ = false;
    return true;
}

// Few columns mostly have nearly all of the weight: if those near the largest reach `top_p`, nothing else needs to be
// looked at.
void Chooser::keep_near(const float* x, double top_p, double* total) {
    double near[kNumNear];
    *total = rows_.weight_sums(x, n_, top_, temperature_, distance_, near);
    const double wanted = top_p * *total;
    for (int c = 0; c < kNumNear; c++) {
        if (near[c] < wanted * (1 + 1e-6)) continue;  // more than these sums may be wrong by
        keep_from(x, (float)((double)top_ - (kNear[c] + 1e-3) * temperature_));
        return;
    }
}

// The fewest most probable survivors that reach `top_p`. Their weights are summed up in buckets of nearly equal scores,
// so that only the bucket in which the sum is reached must be sorted.
void Chooser::keep_nucleus(const float* x, double top_p) {
    double total = 0;
    if (is_long()) keep_near(x, top_p, &total);
    const double kept = weigh(x);
    const double wanted = top_p * (total > 0 && !all_ ? total : kept), steps = kBuckets / kRange / temperature_;
    const float* values = all_ ? x : values_;
    const auto bucket = [&](int64_t i) {
        const double step = ((double)top_ - (double)values[i]) * steps;
        return step < kBuckets - 1 ? (int64_t)step : kBuckets - 1;
    };
    std::fill(buckets_, buckets_ + kBuckets, 0.0);
    for (int64_t i = 0; i < count_; i++) buckets_[bucket(i)] += weights_[i];
    double reached = 0;
    int64_t last = 0;
    while (last < kBuckets - 1 && reached + buckets_[last] < wanted) reached += buckets_[last++];
    int64_t found = 0;
    for (int64_t i = 0; i < count_; i++)
        if (bucket(i) == last) order_[found++] = (int32_t)i;
    const auto before = [&](int32_t a, int32_t b) {
        return weights_[a] > weights_[b] || (weights_[a] == weights_[b] && a < b);
    };
    std::sort(order_, order_ + found, before);
    int64_t taken = 0;
    while (taken < found && (reached < wanted || (taken == 0 && last == 0))) reached += weights_[order_[taken++]];
    const int32_t border = taken ? order_[taken - 1] : -1;
    keep(x, [&](int64_t i) {
        const int64_t b = bucket(i);
        return b < last || (b == last && border >= 0 && !before(border, (int32_t)i));
    });
}

// The first survivor whose cumulative weight exceeds the share `uniform` of all: summed by groups, then within one.
int64_t Chooser::draw(float uniform) {
    for (int64_t first = 0; first < count_; first += kWeightGroup) {
        const int64_t n = std::min<int64_t>(kWeightGroup, count_ - first);
        double sums[8] = {};
        for (int64_t i = 0; i < n; i++) sums[i % 8] += weights_[first + i];
        distance_[first / kWeightGroup] = std::accumulate(sums, sums + 8, 0.0);
    }
    const auto [first, before, wanted] = find_group(uniform);
    return first + find(weights_ + first, std::min<int64_t>(kWeightGroup, count_ - first), before, wanted);
}

// The same where every column survives: only the weights of one group are kept.
int64_t Chooser::draw_of_all(const float* x, float uniform) {
    rows_.weight_sums(x, n_, top_, temperature_, distance_, nullptr);
    const auto [first, before, wanted] = find_group(uniform);
    const int64_t n = std::min<int64_t>(kWeightGroup, n_ - first);
    rows_.weights(x + first, n, top_, temperature_, weights_);
    return first + find(weights_, n, before, wanted);
}

// From the sums of groups in distance_: the first column of the group, the weight before it, and the weight wanted.
Chooser::Place Chooser::find_group(float uniform) {
    const int64_t groups = (count_ + kWeightGroup - 1) / kWeightGroup;
    std::partial_sum(distance_, distance_ + groups, distance_);
    const double wanted = std::min((double)uniform, kLargestUniform) * distance_[groups - 1];
    const int64_t group = std::min<int64_t>(std::upper_bound(distance_, distance_ + groups, wanted) - distance_, groups - 1);
    return {group * kWeightGroup, group ? distance_[group - 1] : 0, wanted};
}

int64_t Chooser::find(const double* weights, int64_t n, double before, double wanted) {
    double sum = before;
    for (int64_t i = 0; i < n; i++)
        if ((sum += weights[i]) > wanted) return i;
    // Rounding: the group's sum exceeds what is wanted, that of its members does not.
    for (int64_t i = n - 1;; i--)
        if (weights[i] > 0 || i == 0) return i;
}

int32_t Chooser::sample(const float* x, const Filters& filters, float uniform) {
    const int64_t best = rows_.largest(x, n_);
    top_ = x[best];
    if (!std::isfinite(top_) || rows_.has_nan(x, n_)) return -1;
    if (!(filters.temperature > 0)) return (int32_t)best;
    all_ = true, count_ = n_, temperature_ = filters.temperature;
    if (0 < filters.top_k && filters.top_k < n_) keep_top_k(x, filters.top_k);
    if (filters.top_p < 1) keep_nucleus(x, filters.top_p);
    if (filters.min_p > 0) {
        // A little more than what survives; the weights decide.
        const double score = 1e-3 - std::log(std::min((double)filters.min_p, 1.0));
        if (is_long()) keep_from(x, (float)((double)top_ - score * temperature_));
        weigh(x);
        keep_probable(std::min((double)filters.min_p, 1.0), x);
    }
    if (filters.typical_p < 1) keep_typical(filters.typical_p, weigh(x), x);
    if (is_long()) return (int32_t)draw_of_all(x, uniform);
    weigh(x);
    return all_ ? (int32_t)draw(uniform) : ids_[draw(uniform)];
}

// Survivors whose weight relative to the most probable token is large enough.
void Chooser::keep_probable(double min_p, const float* x) {
    keep(x, [&](int64_t i) { return weights_[i] >= min_p; });
}

void Chooser::keep_typical(double mass, double total, const float* x) {
    double entropy = 0;
    for (int64_t i = 0; i < count_; i++) {
        const double p = weights_[i] / total;
        distance_[i] = -std::log(p);
        if (p > 0) entropy += p * distance_[i];
        order_[i] = (int32_t)i;
    }
    for (int64_t i = 0; i < count_; i++) distance_[i] = std::fabs(distance_[i] - entropy);
    const auto after = [&](int32_t a, int32_t b) {
        return distance_[a] > distance_[b] || (distance_[a] == distance_[b] && a > b);
    };
    std::make_heap(order_, order_ + count_, after);
    double reached = 0, farthest = 0;
    for (int64_t taken = 0; taken < count_ && (taken == 0 || reached < mass); taken++) {
        std::pop_heap(order_, order_ + (count_ - taken), after);
        const int32_t nearest = order_[count_ - taken - 1];
        reached += weights_[nearest] / total;
        farthest = distance_[nearest];
    }
    keep(x, [&](int64_t i) { return distance_[i] <= farthest; });
}

}  // namespace rt
