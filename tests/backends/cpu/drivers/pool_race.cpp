// Loops of every shape on the thread pool with plain memory as their only data, for the thread sanitizer to watch.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

// Loop after loop over the same plain integers: each must see what the one before wrote, whoever wrote it.
bool loops_follow_each_other(int threads, int64_t units, int loops, bool pauses) {
    rt::Pool pool(threads);
    std::vector<int64_t> value(units, 0), visits(pool.size(), 0);
    for (int loop = 0; loop < loops; loop++) {
        int64_t sum = 0;  // of the caller's stack
        pool.run(units, [&](int thread, int64_t first, int64_t last) {
            for (int64_t i = first; i < last; i++) value[i] += i == 0 ? loop + 1 : value[i] % 7 + 1;
            visits[thread] += last - first;
        });
        for (int64_t v : value) sum += v;
        value[loop % units] = sum % 1000;  // the caller writes between loops
        if (pauses && loop % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));  // threads fall asleep
    }
    int64_t visited = 0;
    for (int64_t v : visits) visited += v;
    return visited == units * loops;
}

}  // namespace

int main() {
    bool good = true;
    for (int threads : {1, 2, 3, 5})
        for (int64_t units : {1, 2, 7, 300})
            for (bool pauses : {false, true}) good &= loops_follow_each_other(threads, units, 1000, pauses);
    for (int i = 0; i < 50; i++) rt::Pool(4);  // made and ended without a loop
    std::puts(good ? "every unit once" : "units were lost");
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
