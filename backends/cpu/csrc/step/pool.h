// Threads that are made once and share out loops. The caller takes part; nobody is busy when there is nothing to do.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#if !defined(__linux__)
#include <condition_variable>
#include <mutex>
#endif

namespace rt {

// Every thread owns a contiguous range of the units of a loop, so that it reads memory in order, and takes small pieces
// of it from a counter; whoever is done takes pieces of the others' ranges. A thread that loses its core holds up one
// piece and no more. Waiting spins for about 20 us, then sleeps: only then can the system move a thread that waits for
// a busy core to the idle one.
class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return size_; }

    // body(thread, first, last) for disjoint ranges that cover 0 .. units - 1; returns when all are done.
    template <class Body>
    void run(int64_t units, const Body& body) {
        if (units <= 0) return;
        if (size_ == 1 || units == 1) {
            body(0, int64_t(0), units);
            return;
        }
        share(units, &call<Body>, &body);
    }

private:
    using Call = void (*)(const void* body, int thread, int64_t first, int64_t last);

    template <class Body>
    static void call(const void* body, int thread, int64_t first, int64_t last) {
        (*static_cast<const Body*>(body))(thread, first, last);
    }

    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
        int64_t piece = 1;
    };

    void share(int64_t units, Call call, const void* body);
    void work(int thread);
    void live(int thread);
    void wait_while(std::atomic<uint32_t>& word, uint32_t value, std::atomic<int32_t>& sleepers);
    void wake(std::atomic<uint32_t>& word, std::atomic<int32_t>& sleepers);

    const int size_;
    Call call_ = nullptr;
    const void* body_ = nullptr;
    std::unique_ptr<Share[]> shares_;
    std::vector<std::thread> threads_;

    alignas(64) std::atomic<uint32_t> epoch_{0};    // odd while a loop is open
    std::atomic<int32_t> idle_{0};                  // threads that sleep until a loop opens
    alignas(64) std::atomic<uint32_t> inside_{0};   // threads that may touch the open loop
    std::atomic<int32_t> waiting_{0};               // the caller, asleep until they have left
    std::atomic<bool> stop_{false};
#if !defined(__linux__)
    std::mutex mutex_;
    std::condition_variable changed_;
#endif
};

}  // namespace rt
