// Attention of one ragged step: cut into pieces that any thread may take, put together in an order that is always the
// same. Keys are summed up in splits of kKvSplit, counted from position 0, and the splits are merged in order; who
// computes a split, and when, changes nothing.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "program.h"

namespace rt {

namespace {

constexpr int32_t kTileRows = 24;    // rows of a prefill tile: keys and values are read once for all of them
constexpr int64_t kDecodeRows = 16;  // sequences with at most so many rows go through a block head by head, in the
                                     // order of its bytes: pieces out of order would halve the read bandwidth

struct Attention {
    const KvCache* cache;
    const float* q;
    float* y;
    const int32_t *block_table, *query_start_loc, *seq_lens;
    const float *sinks, *slopes;
    int64_t num_seqs, table_width;
    int64_t num_heads, group;     // query heads; of them per KV head
    float scale, softcap;
    int64_t window;
    bool causal;

    int64_t width() const { return num_heads * cache->head_dim; }
    int64_t end_of(int64_t position, int64_t length) const { return causal ? std::min(position + 1, length) : length; }
    int64_t first_of(int64_t position) const { return window ? std::max<int64_t>(0, position - window + 1) : 0; }
};

// Rows row_first .. row_end - 1 (token * group + head within the group) of a sequence, for some KV heads and splits.
struct Unit {
    int32_t sequence, row_first, row_end, head_first, head_end, split_first, split_end;
    int32_t counter;   // of units that are not done for these rows and heads, or -1: this one is alone
    int64_t partial;   // floats from the start of all partials to those of the first split of these rows, all heads
    int32_t splits;    // of these rows, in all
};

// Everything that one head's rows need while keys pass by.
struct Tile {
    AttentionTile call;
    float *largest, *total, *sum;              // of the split at hand
    float *all_largest, *all_total, *all_sum;  // of the splits before

    static size_t take(Carver& carver, const Attention& a, const RowKernels& rows, int32_t count, Tile* tile) {
        Tile t{};
        void* q = carver.take<uint8_t>((int64_t)rows.query_bytes(*a.cache, count));
        const int64_t width = a.cache->padded_dim();
        t.largest = carver.take<float>(count), t.total = carver.take<float>(count);
        t.all_largest = carver.take<float>(count), t.all_total = carver.take<float>(count);
        t.sum = carver.take<float>(count * width), t.all_sum = carver.take<float>(count * width);
        t.call.slopes = carver.take<float>(count);
        t.call.q = q;
        if (tile) *tile = t;
        return carver.used();
    }
};

class Worker {
public:
    Worker(Run& run, const Attention& a, uint8_t* memory) : rows_(run.rows()), a_(a), carver_(memory) {}

    static size_t bytes(Run& run, const Attention& a, const Unit& unit) {
        Carver carver;
        const int32_t count = unit.row_end - unit.row_first;
        take_borders(carver, count);
        for (int32_t h = unit.head_first; h < unit.head_end; h++) Tile::take(carver, a, run.rows(), count, nullptr);
        return carver.used() + 64 * sizeof(Tile);
    }

    void work(const Unit& unit, float* partials, std::atomic<int32_t>* counters) {
        open(unit);
        const int32_t heads = unit.head_end - unit.head_first;
        const int64_t width = a_.cache->padded_dim();
        for (int32_t split = unit.split_first; split < unit.split_end; split++) {
            for (int32_t h = 0; h < heads; h++) clear(tiles_[h].largest, tiles_[h].total, tiles_[h].sum);
            attend(split);
            for (int32_t h = 0; h < heads; h++) {
                Tile& t = tiles_[h];
                if (unit.counter < 0)
                    rows_.merge(count_, width, t.largest, t.total, t.sum, t.all_largest, t.all_total, t.all_sum);
                else
                    keep(t, partial(unit, partials, unit.head_first + h));
            }
        }
        if (unit.counter >= 0 && counters[unit.counter].fetch_sub(1) != 1) return;
        for (int32_t h = 0; h < heads; h++) {
            Tile& t = tiles_[h];
            for (int32_t s = 0; unit.counter >= 0 && s < unit.splits; s++) {
                const float* p = partials + unit.partial + part_floats(unit) * s + head_floats(unit) * (unit.head_first + h);
                rows_.merge(count_, width, p, p + count_, p + 2 * count_, t.all_largest, t.all_total, t.all_sum);
            }
            finish(unit, t, unit.head_first + h);
        }
    }

    int64_t head_floats(const Unit& u) const {
        return (u.row_end - u.row_first) * (2 + a_.cache->padded_dim());
    }
    int64_t part_floats(const Unit& u) const { return a_.cache->num_heads * head_floats(u); }

private:
    static void take_borders(Carver& carver, int32_t count) {
        carver.take<int64_t>(count), carver.take<int64_t>(count), carver.take<int64_t>(count);
    }

    void clear(float* largest, float* total, float* sum) {
        std::fill(largest, largest + count_, -INFINITY);
        std::fill(total, total + count_, 0.0f);
        std::fill(sum, sum + count_ * a_.cache->padded_dim(), 0.0f);
    }

    float* partial(const Unit& unit, float* partials, int32_t head) const {
        return partials + unit.partial + part_floats(unit) * (unit.split_first - first_split_) + head_floats(unit) * head;
    }

    void keep(const Tile& t, float* p) const {
        std::memcpy(p, t.largest, 4 * (size_t)count_);
        std::memcpy(p + count_, t.total, 4 * (size_t)count_);
        std::memcpy(p + 2 * count_, t.sum, 4 * (size_t)(count_ * a_.cache->padded_dim()));
    }

    // What each row sees, and the packed queries of every head.
    void open(const Unit& unit) {
        count_ = unit.row_end - unit.row_first;
        const int64_t start = a_.query_start_loc[unit.sequence];
        const int64_t queries = a_.query_start_loc[unit.sequence + 1] - start, length = a_.seq_lens[unit.sequence];
        first_ = carver_.take<int64_t>(count_), end_ = carver_.take<int64_t>(count_);
        positions_ = carver_.take<int64_t>(count_);
        key_first_ = INT64_MAX, key_end_ = 0;
        for (int32_t r = 0; r < count_; r++) {
            positions_[r] = length - queries + (unit.row_first + r) / a_.group;
            first_[r] = a_.first_of(positions_[r]);
            end_[r] = a_.end_of(positions_[r], length);
            key_first_ = std::min(key_first_, first_[r]);
            key_end_ = std::max(key_end_, end_[r]);
        }
        first_split_ = (int32_t)(key_first_ / kKvSplit);
        tiles_ = carver_.take<Tile>(unit.head_end - unit.head_first);
        const float* rows[kMaxTileRows];
        for (int32_t h = unit.head_first; h < unit.head_end; h++) {
            Tile& t = tiles_[h - unit.head_first];
            Tile::take(carver_, a_, rows_, count_, &t);
            float* slopes = const_cast<float*>(t.call.slopes);
            for (int32_t r = 0; r < count_; r++) {
                const int64_t query = start + (unit.row_first + r) / a_.group;
                const int64_t head = h * a_.group + (unit.row_first + r) % a_.group;
                rows[r] = a_.q + query * a_.width() + head * a_.cache->head_dim;
                if (a_.slopes) slopes[r] = a_.slopes[head];
            }
            rows_.pack_queries(*a_.cache, rows, count_, const_cast<void*>(t.call.q));
            clear(t.all_largest, t.all_total, t.all_sum);
            t.call = AttentionTile{a_.cache, a_.block_table + unit.sequence * a_.table_width, h, count_, 0, 0, first_,
                                   end_, t.call.q, a_.scale, a_.softcap, a_.slopes ? slopes : nullptr, positions_,
                                   nullptr, t.largest, t.total, t.sum};
        }
        heads_ = unit.head_end - unit.head_first;
    }

    void attend(int32_t split) {
        const int64_t first = std::max<int64_t>(key_first_, (int64_t)split * kKvSplit);
        const int64_t end = std::min<int64_t>(key_end_, (int64_t)(split + 1) * kKvSplit);
        if (first >= end) return;
        const int64_t step = heads_ == 1 ? kKvSplit : a_.cache->block_size;
        for (int64_t key = first / step * step; key < end; key += step)
            for (int32_t h = 0; h < heads_; h++) {
                tiles_[h].call.key_first = std::max(key, first);
                tiles_[h].call.key_end = std::min(key + step, end);
                tiles_[h].call.next = following(key, h, end);
                rows_.attend(tiles_[h].call);
            }
    }

    // Where this thread reads when it is done with head h of the block that holds `key`.
    const uint8_t* following(int64_t key, int32_t h, int64_t end) const {
        const KvCache& cache = *a_.cache;
        const AttentionTile& first = tiles_[0].call;
        const int64_t block = key / cache.block_size;
        if (h + 1 < heads_) return head(cache, first.blocks[block], first.head + h + 1);
        return heads_ > 1 && (block + 1) * cache.block_size < end ? head(cache, first.blocks[block + 1], first.head)
                                                                 : nullptr;
    }
    static const uint8_t* head(const KvCache& cache, int32_t block, int32_t head) {
        return cache.data + block * cache.block_bytes() + 2 * head * cache.half_bytes();
    }

    void finish(const Unit& unit, const Tile& t, int32_t kv_head) {
        const int64_t start = a_.query_start_loc[unit.sequence], dim = a_.cache->head_dim;
        for (int32_t r = 0; r < count_; r++) {
            const int64_t query = start + (unit.row_first + r) / a_.group;
            const int64_t head = kv_head * a_.group + (unit.row_first + r) % a_.group;
            rows_.finish((int32_t)dim, t.all_largest[r], t.all_total[r], t.all_sum + r * a_.cache->padded_dim(),
                         a_.sinks ? a_.sinks + head : nullptr, a_.y + query * a_.width() + head * dim);
        }
    }

    const RowKernels& rows_;
    const Attention& a_;
    Carver carver_;
    Tile* tiles_ = nullptr;
    int32_t heads_ = 0, count_ = 0, first_split_ = 0;
    int64_t *first_ = nullptr, *end_ = nullptr, *positions_ = nullptr;
    int64_t key_first_ = 0, key_end_ = 0;
};

int32_t check_borders(Run& run, const Attention& a, int64_t rows) {
    const int32_t* borders = a.query_start_loc;
    const int64_t capacity = a.table_width * a.cache->block_size;
    if (borders[0] != 0) return run.fail(kInvalidArgument, "query_start_loc starts with %d, not with 0", borders[0]);
    for (int64_t s = 0; s < a.num_seqs; s++) {
        const int64_t queries = (int64_t)borders[s + 1] - borders[s], length = a.seq_lens[s];
        if (queries < 0 || borders[s + 1] > rows)
            return run.fail(kInvalidArgument, "query_start_loc[%lld] = %d must not fall and must be within the %lld rows of q",
                            (long long)s + 1, borders[s + 1], (long long)rows);
        if (length < (a.causal ? queries : 0) || length > capacity)
            return run.fail(kInvalidArgument,
                            "seq_lens[%lld] = %lld must be at least the %lld queries of the sequence and at most %lld, "
                            "what its row of block_table can hold",
                            (long long)s, (long long)length, (long long)queries, (long long)capacity);
        if (queries == 0) continue;
        const int64_t first_block = a.first_of(std::max<int64_t>(0, length - queries)) / a.cache->block_size;
        const int64_t blocks = (length + a.cache->block_size - 1) / a.cache->block_size;
        if (int32_t failed = run.check("block_table", a.block_table + s * a.table_width + first_block,
                                       std::max<int64_t>(0, blocks - first_block), a.cache->num_blocks))
            return failed;
    }
    return kOk;
}

// Calls emit(unit) for all units of the step, without partials; `head_step` KV heads go into one decode unit.
template <class Emit>
void for_units(const Attention& a, int64_t head_step, const Emit& emit) {
    for (int64_t s = 0; s < a.num_seqs; s++) {
        const int64_t queries = a.query_start_loc[s + 1] - a.query_start_loc[s], length = a.seq_lens[s];
        const int64_t rows = queries * a.group;
        const bool decode = rows <= kDecodeRows;
        const int64_t tile = decode ? std::max<int64_t>(rows, 1) : kTileRows, heads = decode ? head_step : 1;
        // The last tiles see the most keys: they come first, so that none of them is left over at the end.
        for (int64_t r = rows == 0 ? -1 : (rows - 1) / tile * tile; r >= 0; r -= tile) {
            const int64_t end = std::min(r + tile, rows);
            const int64_t low = length - queries + r / a.group, high = length - queries + (end - 1) / a.group;
            const int64_t key_first = a.first_of(low), key_end = a.end_of(high, length);
            const int64_t split_first = key_first / kKvSplit;
            const int64_t split_end = std::max(split_first + 1, (key_end + kKvSplit - 1) / kKvSplit);
            for (int64_t h = 0; h < a.cache->num_heads; h += heads)
                emit(Unit{(int32_t)s, (int32_t)r, (int32_t)end, (int32_t)h,
                          (int32_t)std::min<int64_t>(h + heads, a.cache->num_heads), (int32_t)split_first,
                          (int32_t)split_end, -1, 0, (int32_t)(split_end - split_first)},
                     decode);
        }
    }
}

}  // namespace

// in: q, KvCache, block_table, query_start_loc, seq_lens, sinks or none, alibi_slopes or none
// size: num_heads, window, causal, dim of S (or -1), S, dim of P (or -1), P   number: scale, softcap
int32_t run_attention(Run& run, const Operation* op) {
    Attention a{};
    a.cache = run.at<KvCache>(op->in[1]);
    a.q = run.at<float>(op->in[0]), a.y = run.at<float>(op->out[0]);
    a.block_table = run.at<int32_t>(op->in[2]), a.query_start_loc = run.at<int32_t>(op->in[3]);
    a.seq_lens = run.at<int32_t>(op->in[4]);
    a.sinks = run.at<float>(op->in[5]), a.slopes = run.at<float>(op->in[6]);
    a.num_heads = op->size[0], a.group = a.num_heads / a.cache->num_heads;
    a.window = op->size[1], a.causal = op->size[2] != 0;
    a.num_seqs = op->size[3] < 0 ? op->size[4] : run.dim(op->size[3]);
    a.table_width = op->size[5] < 0 ? op->size[6] : run.dim(op->size[5]);
    a.scale = (float)op->number[0], a.softcap = (float)op->number[1];
    const int64_t rows = run.count(*op);
    if (int32_t failed = check_borders(run, a, rows)) return failed;
    const int64_t used = a.query_start_loc[a.num_seqs];
    std::memset(a.y + used * a.width(), 0, 4 * (size_t)((rows - used) * a.width()));

    int64_t pieces = 0;
    for_units(a, a.cache->num_heads, [&](const Unit& u, bool decode) { pieces += decode ? u.splits : 1; });
    const int64_t wanted = run.device.pool.size() == 1 ? 1 : 4 * run.device.pool.size();
    const int64_t cuts = std::min<int64_t>(a.cache->num_heads, pieces ? (wanted + pieces - 1) / pieces : 1);
    const int64_t head_step = (a.cache->num_heads + cuts - 1) / cuts;

    int64_t num_units = 0, num_counters = 0, partial_floats = 0;
    const int64_t head_width = 2 + a.cache->padded_dim();
    for_units(a, head_step, [&](const Unit& u, bool decode) {
        num_units += decode ? u.splits : 1;
        if (!decode || u.splits == 1) return;
        num_counters++;
        if (u.head_first == 0) partial_floats += u.splits * a.cache->num_heads * (u.row_end - u.row_first) * head_width;
    });
    State& state = run.state;
    state.units.reserve((size_t)num_units * sizeof(Unit));
    state.counters.reserve((size_t)num_counters * sizeof(std::atomic<int32_t>));
    state.partials.reserve((size_t)partial_floats * 4);
    Unit* units = state.units.as<Unit>();
    auto* counters = state.counters.as<std::atomic<int32_t>>();
    float* partials = state.partials.as<float>();
    int64_t n = 0, floats = 0;
    int32_t counter = 0;
    size_t bytes = 0;
    for_units(a, head_step, [&](const Unit& u, bool decode) {
        bytes = std::max(bytes, Worker::bytes(run, a, u));
        if (!decode || u.splits == 1) {
            units[n++] = u;
            return;
        }
        counters[counter].store(u.splits, std::memory_order_relaxed);
        for (int32_t s = 0; s < u.splits; s++) {
            Unit part = u;
            part.split_first = u.split_first + s, part.split_end = part.split_first + 1;
            part.counter = counter, part.partial = floats;
            units[n++] = part;
        }
        counter++;
        if (u.head_end == a.cache->num_heads)
            floats += u.splits * a.cache->num_heads * (u.row_end - u.row_first) * head_width;
    });
    run.device.reserve_threads(bytes);
    run.device.pool.run(n, [&](int thread, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++)
            Worker(run, a, run.device.thread_memory[thread].data()).work(units[i], partials, counters);
    });
    return 1;
}

}  // namespace rt
