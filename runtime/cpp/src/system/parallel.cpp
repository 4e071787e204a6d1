#include "system/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace denseport {

void parallel(int count, int threads, const std::function<void(int)>& work) {
    std::atomic<int> next{0};
    std::mutex mutex;
    std::exception_ptr failed;
    const auto run = [&] {
        try {
            for (int i; (i = next++) < count;) work(i);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failed) failed = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < std::min(threads, count); ++i) {
        try {
            helpers.emplace_back(run);
        } catch (const std::system_error&) {
            break;  // no more threads are to be had: those that are there do it
        }
    }
    run();
    for (std::thread& helper : helpers) helper.join();
    if (failed) std::rethrow_exception(failed);
}

}  // namespace denseport
