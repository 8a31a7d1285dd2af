#include "pool.h"

#include <algorithm>
#include <chrono>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rt {

namespace {

constexpr auto kSpin = std::chrono::microseconds(20);
constexpr int kPiecesPerShare = 16;  // what a lost core can hold up: about a sixteenth of a share

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) : size_(std::max(1, threads)), shares_(new Share[std::max(1, threads)]) {
    for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { live(i); });
}

Pool::~Pool() {
    stop_ = true;
    epoch_ += 2;
    wake(epoch_, idle_);
    for (auto& thread : threads_) thread.join();
}

void Pool::share(int64_t units, Call call, const void* body) {
    call_ = call;
    body_ = body;
    for (int i = 0; i < size_; i++) {
        const int64_t first = units * i / size_, end = units * (i + 1) / size_;
        shares_[i].next.store(first, std::memory_order_relaxed);
        shares_[i].end = end;
        shares_[i].piece = std::max<int64_t>(1, (end - first) / kPiecesPerShare);
    }
    epoch_.fetch_add(1);
    wake(epoch_, idle_);
    work(0);
    epoch_.fetch_add(1);
    for (uint32_t inside = inside_.load(); inside != 0; inside = inside_.load()) wait_while(inside_, inside, waiting_);
}

void Pool::work(int thread) {
    for (int i = 0; i < size_; i++) {
        Share& share = shares_[thread + i < size_ ? thread + i : thread + i - size_];
        while (share.next.load(std::memory_order_relaxed) < share.end) {
            const int64_t first = share.next.fetch_add(share.piece, std::memory_order_relaxed);
            if (first >= share.end) break;
            call_(body_, thread, first, std::min(first + share.piece, share.end));
        }
    }
}

void Pool::live(int thread) {
    uint32_t seen = 0;
    while (true) {
        wait_while(epoch_, seen, idle_);
        if (stop_) return;
        // Whoever is inside keeps the loop's data alive; an epoch read before entering may already be closed.
        inside_.fetch_add(1);
        seen = epoch_.load();
        if (seen & 1) work(thread);
        if (inside_.fetch_sub(1) == 1) wake(inside_, waiting_);
    }
}

#if defined(__linux__)

void Pool::wait_while(std::atomic<uint32_t>& word, uint32_t value, std::atomic<int32_t>& sleepers) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; i++) {
            if (word.load(std::memory_order_acquire) != value) return;
            relax();
        }
    } while (std::chrono::steady_clock::now() < until);
    sleepers.fetch_add(1);
    while (word.load() == value)
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    sleepers.fetch_sub(1);
}

void Pool::wake(std::atomic<uint32_t>& word, std::atomic<int32_t>& sleepers) {
    if (sleepers.load() > 0)
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}

#else

void Pool::wait_while(std::atomic<uint32_t>& word, uint32_t value, std::atomic<int32_t>& sleepers) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (std::chrono::steady_clock::now() < until) {
        if (word.load(std::memory_order_acquire) != value) return;
        relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers.fetch_add(1);
    changed_.wait(lock, [&] { return word.load() != value; });
    sleepers.fetch_sub(1);
}

void Pool::wake(std::atomic<uint32_t>&, std::atomic<int32_t>& sleepers) {
    if (sleepers.load() == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    changed_.notify_all();
}

#endif

}  // namespace rt
