#include "loader.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#endif

#include "program.h"

namespace rt {

namespace {

constexpr int64_t kMaxWaiting = int64_t(1) << 30;
constexpr int64_t kSlice = int64_t(8) << 20;        // bytes of source between two looks at what can be given back
constexpr uintptr_t kPage = 4096, kLargePage = uintptr_t(1) << 21;

// The system zeroes a large page in 0.2 ms. It takes ten times as long where memory must be gathered first, or where the
// host of a virtual machine has taken it back, and small pages come from what is at hand. Two such pages decide.
constexpr double kSlowPage_s = 1e-3;
constexpr int kSlowPages = 2;
constexpr auto kBeforeGathering = std::chrono::seconds(2);  // a process that only answers once has ended by then

#if defined(__linux__)

// Names that older headers lack; a kernel that lacks the call says so, and faults do the same later.
constexpr int kPopulateRead = 22, kPopulateWrite = 23, kCollapse = 25;

void advise(uintptr_t first, uintptr_t last, int advice) {
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, advice);
}
uintptr_t down(const void* p, uintptr_t size) { return reinterpret_cast<uintptr_t>(p) / size * size; }
uintptr_t up(const void* p, uintptr_t size) { return (reinterpret_cast<uintptr_t>(p) + size - 1) / size * size; }

double thread_seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// Write to every large page that begins in [first, last); how many of them took long.
int touch_large(uint8_t* first, uint8_t* last) {
    int slow = 0;
    for (uintptr_t page = up(first, kLargePage); page < reinterpret_cast<uintptr_t>(last); page += kLargePage) {
        const double before = thread_seconds();
        *reinterpret_cast<volatile uint8_t*>(page) = 0;
        slow += thread_seconds() - before > kSlowPage_s;
    }
    return slow;
}

bool large_pages_allowed() {
    char text[64] = {};
    if (FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r")) {
        const size_t read = std::fread(text, 1, sizeof text - 1, file);
        std::fclose(file);
        return read > 0 && std::string(text).find("[never]") == std::string::npos;
    }
    return false;
}

#endif

}  // namespace

Loader::~Loader() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
    if (gatherer_.joinable()) gatherer_.join();
}

bool Loader::add(const PackJob& job) {
    const int64_t bytes = job.source_bytes * job.count;
    std::lock_guard<std::mutex> lock(mutex_);
    if (waiting_bytes_ > 0 && waiting_bytes_ + bytes > kMaxWaiting) return false;
    jobs_.push_back(job);
    waiting_bytes_ += bytes;
    unfinished_.fetch_add(1);
    if (!thread_.joinable()) thread_ = std::thread([this] { live(); });
    changed_.notify_all();
    return true;
}

void Loader::wait() {
    if (unfinished_.load(std::memory_order_acquire) == 0) return;
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return unfinished_.load() == 0; });
    if (!in_small_.empty() && !gatherer_.joinable()) gatherer_ = std::thread([this] { gather(); });
}

void Loader::live() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
        if (stop_) return;
        const PackJob job = jobs_.front();
        jobs_.pop_front();
        lock.unlock();
        pack(job);
        lock.lock();
        waiting_bytes_ -= job.source_bytes * job.count;
        unfinished_.fetch_sub(1, std::memory_order_release);
        changed_.notify_all();
    }
}

void Loader::pack(const PackJob& job) {
    const int64_t panels = (job.n + 15) / 16, total = job.count * panels, panel_bytes = job.target_bytes / panels;
    const int64_t row_bytes = job.source_bytes / job.n;
    const int64_t step = std::max<int64_t>(16, kSlice / std::max<int64_t>(1, 16 * row_bytes));
    const auto source = [&](int64_t panel) {
        const int64_t matrix = panel / panels;
        return job.source + matrix * job.source_bytes + std::min((panel - matrix * panels) * 16, job.n) * row_bytes;
    };
    const auto target = [&](int64_t panel) {
        return job.target + panel / panels * job.target_bytes + panel % panels * panel_bytes;
    };
#if defined(__linux__)
    uint8_t* const end = job.target + job.count * job.target_bytes;
    bool large = slow_pages_ < kSlowPages && end - job.target >= int64_t(kLargePage);
    if (large) advise(down(job.target, kPage), up(end, kPage), MADV_HUGEPAGE);
#endif
    for (int64_t first = 0; first < total && !stop_; first += step) {
        const int64_t last = std::min(first + step, total);
#if defined(__linux__)
        if (large && slow_pages_ >= kSlowPages) {
            large = false;
            advise(up(target(first), kPage), up(end, kPage), MADV_NOHUGEPAGE);
        }
        if (job.mapped && last < total)
            advise(down(source(last), kPage), down(source(std::min(last + step, total)), kPage), MADV_WILLNEED);
#endif
        {
            std::lock_guard<std::mutex> lock(device_.mutex);
            device_.pool.run(last - first, [&](int, int64_t begin, int64_t stop) {
                begin += first, stop += first;
                while (begin < stop) {
                    const int64_t matrix = begin / panels, until = std::min(stop, (matrix + 1) * panels);
#if defined(__linux__)
                    if (large) {
                        slow_pages_ += touch_large(target(begin), target(until));
                    } else {
                        advise(down(target(begin), kPage), up(target(until), kPage), kPopulateWrite);
                    }
                    if (job.mapped) advise(down(source(begin), kPage), up(source(until), kPage), kPopulateRead);
#endif
                    device_.kernels->pack(job.format, job.source + matrix * job.source_bytes, job.n, job.k,
                                          begin - matrix * panels, until - matrix * panels,
                                          job.target + matrix * job.target_bytes);
                    begin = until;
                }
            });
        }
#if defined(__linux__)
        // The page on the border is needed again by the next slice, or by the next weight.
        if (job.mapped) advise(down(source(first), kPage), down(source(last), kPage), MADV_DONTNEED);
#endif
    }
#if defined(__linux__)
    if (job.mapped) advise(down(source(total - 1), kPage), up(job.source + job.count * job.source_bytes, kPage), MADV_DONTNEED);
    if (!large && end - job.target >= int64_t(kLargePage)) {
        std::lock_guard<std::mutex> lock(mutex_);
        in_small_.push_back(job);
    }
#endif
}

// Large pages read a little faster. Where they were too slow to wait for, they are made of the small ones by a thread
// that takes only what others leave.
void Loader::gather() {
#if defined(__linux__)
    setpriority(PRIO_PROCESS, 0, 19);  // on Linux: of this thread
    std::vector<PackJob> jobs;
    {
        std::unique_lock<std::mutex> lock(mutex_);
        if (changed_.wait_for(lock, kBeforeGathering, [&] { return stop_.load(); })) return;
        jobs = in_small_;
    }
    if (!large_pages_allowed()) return;
    for (const PackJob& job : jobs) {
        const uintptr_t last = down(job.target + job.count * job.target_bytes, kLargePage);
        for (uintptr_t page = up(job.target, kLargePage); page < last; page += kLargePage) {
            if (stop_) return;
            if (madvise(reinterpret_cast<void*>(page), kLargePage, kCollapse) != 0) return;  // no such call, or no memory
        }
    }
#endif
}

}  // namespace rt
