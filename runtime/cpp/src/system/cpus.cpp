#include "system/cpus.hpp"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "denseport/denseport.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using std::filesystem::path;

constexpr int MOST_THREADS = 1024;
// The kernel's flags for what decides which artifact is the fastest, of x86 and of ARM.
const std::vector<std::pair<std::string, std::set<std::string>>> ARITHMETIC = {
    {"AVX2", {"avx2"}},       {"AVX-512", {"avx512f"}},
    {"SVE", {"sve"}},         {"VNNI", {"avx512_vnni", "avx_vnni"}},
    {"DOTPROD", {"asimddp"}}, {"AMX", {"amx_tile"}},
    {"I8MM", {"i8mm"}},       {"BF16", {"avx512_bf16", "amx_bf16", "bf16"}},
};

// What the first line of /proc/cpuinfo that begins with one of the names says.
std::string cpuinfo(const std::vector<std::string>& names) {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        for (const std::string& name : names)
            if (line.rfind(name, 0) == 0) {
                const std::size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
                return begin == std::string::npos ? "" : line.substr(begin);
            }
    return "";
}

// Processors that a control group allows; 0 where it sets no limit.
int quota(const path& folder) {
    std::string allowed, period;
    std::ifstream unified(folder / "cpu.max");
    if (unified) {
        unified >> allowed >> period;
    } else {
        std::ifstream(folder / "cpu.cfs_quota_us") >> allowed;
        std::ifstream(folder / "cpu.cfs_period_us") >> period;
    }
    double values[2] = {0, 0};
    std::istringstream(allowed) >> values[0];  // "max", "-1": no limit
    std::istringstream(period) >> values[1];
    return values[0] > 0 && values[1] > 0 ? int(std::ceil(values[0] / values[1])) : 0;
}

// Each folder of this process's control groups, up to the root: a parent's limit binds its children.
std::vector<path> folders() {
    const path groups = "/sys/fs/cgroup";
    std::vector<path> found;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        std::istringstream parts(line);
        std::string number, controllers, below;
        std::getline(parts, number, ':') && std::getline(parts, controllers, ':') && std::getline(parts, below);
        std::vector<path> bases;
        if (number == "0")
            bases = {groups, groups / "unified"};
        else if (("," + controllers + ",").find(",cpu,") != std::string::npos)
            bases = {groups / controllers};
        for (const path& base : bases)
            for (path part = path(below).relative_path();; part = part.parent_path()) {
                found.push_back(part.empty() ? base : base / part);
                if (part.empty()) break;
            }
    }
    return found;
}

bool has(const std::string& wanted) {
    const std::vector<std::string> found = arithmetic();
    return std::find(found.begin(), found.end(), wanted) != found.end();
}

}  // namespace

int usable_cpus() {
    cpu_set_t mask;
    int found = int(std::thread::hardware_concurrency());
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) found = CPU_COUNT(&mask);
    for (const path& folder : folders())
        if (const int limit = quota(folder)) found = std::min(found, limit);
    return std::max(1, found);
}

int check_threads(int threads) {
    if (threads < 0 || threads > MOST_THREADS)
        throw InputError("threads: expected a whole number from 1 to " + std::to_string(MOST_THREADS) + ", found " +
                             std::to_string(threads),
                         "Give such a number, or 0 for the CPUs that this process may use.");
    return threads ? threads : usable_cpus();
}

std::vector<std::string> arithmetic() {
    std::istringstream words(cpuinfo({"flags", "Features"}));
    std::set<std::string> flags;
    for (std::string word; words >> word;) flags.insert(word);
    std::vector<std::string> found;
    for (const auto& [name, known] : ARITHMETIC)
        if (std::any_of(known.begin(), known.end(), [&](const std::string& flag) { return flags.count(flag) > 0; }))
            found.push_back(name);
    return found;
}

bool has_bf16() { return has("BF16"); }

bool has_vnni() { return has("VNNI") || has("DOTPROD"); }

std::string processor() {
    const std::string name = cpuinfo({"model name"}), known = joined(arithmetic());
    return (name.empty() ? "unknown" : name) + (known.empty() ? "" : " with " + known);
}

}  // namespace denseport
