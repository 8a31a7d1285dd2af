// Packs weights in a thread of its own, in the order in which they are handed over, with the pool of the device.
//
// Whoever loads a model hands over one weight after the other and goes on: what else a start needs (tokenizer, plan,
// programs) runs meanwhile. The first program waits for the last weight.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace rt {

struct Device;

// `count` matrices [n, k] in GGUF order, `source_bytes` each, to `count` packed ones, `target_bytes` each, in memory of
// allocate_pages(bytes, false). Of a `mapped` source, pages are given back as soon as they are packed: it must be a
// mapping of a file that nobody writes to.
struct PackJob {
    int32_t format;
    bool mapped;
    int64_t count, n, k;
    const uint8_t* source;
    int64_t source_bytes;
    uint8_t* target;
    int64_t target_bytes;
};

class Loader {
public:
    explicit Loader(Device& device) : device_(device) {}
    ~Loader();  // what is not packed by then never will be
    Loader(const Loader&) = delete;
    Loader& operator=(const Loader&) = delete;

    // Takes the job over, or returns false where a gigabyte waits already: a caller that counts what it hands over should
    // not be far ahead.
    bool add(const PackJob& job);
    // Returns when everything that was handed over is packed.
    void wait();

private:
    void live();
    void pack(const PackJob& job);
    void gather();

    Device& device_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<PackJob> jobs_;
    int64_t waiting_bytes_ = 0;
    std::atomic<int64_t> unfinished_{0};
    std::atomic<bool> stop_{false};
    std::thread thread_;

    std::atomic<int> slow_pages_{0};     // large pages that took long
    std::vector<PackJob> in_small_;      // whose targets were written in small pages for that reason
    std::thread gatherer_;
};

}  // namespace rt
