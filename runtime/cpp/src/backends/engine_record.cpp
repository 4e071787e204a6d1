#include "backends/engine_record.hpp"

#include <algorithm>
#include <cctype>

#include "system/text.hpp"

namespace denseport {
namespace {

const std::vector<std::string> NEEDED = {
    "flavour", "version", "compute_capability", "targets", "version_compatible", "hardware_compatibility"};

std::string sm_name(const Capability& capability) { return "sm_" + shown(capability.first) + shown(capability.second); }

// "11.1.0.106" as numbers.
std::vector<long long> numbers(const std::string& version) {
    std::vector<long long> found;
    bool in_number = false;
    for (const char letter : version) {
        const bool is_digit = std::isdigit(static_cast<unsigned char>(letter)) != 0;
        if (is_digit && !in_number) found.push_back(0);
        if (is_digit) found.back() = std::min(found.back() * 10 + (letter - '0'), 1'000'000'000LL);
        in_number = is_digit;
    }
    return found.empty() ? std::vector<long long>{0} : found;
}

bool version_fits(const BuildRecord& record, const std::string& version) {
    if (record.version == version || !record.version_compatible) return record.version == version;
    const std::vector<long long> built = numbers(record.version), here = numbers(version);
    // Across majors only 10 to 11 is supported (support matrix of TensorRT 11.4).
    return here >= built && (here[0] == built[0] || (built[0] == 10 && here[0] == 11));
}

bool gpu_fits(const BuildRecord& record, const Capability& capability) {
    if (record.hardware_compatibility == "ampere_plus") return capability >= Capability{8, 0};
    const std::string here = sm_name(capability);
    if (record.targets.empty()) return record.compute_capability == here;
    return std::find(record.targets.begin(), record.targets.end(), here) != record.targets.end();
}

}  // namespace

BuildRecord BuildRecord::of(const Artifact& engine, const std::string& name) {
    Json given = Json::object();  // a record may hold measurements too
    for (const std::string& field : NEEDED)
        if (const auto found = engine.record.find(field); found != engine.record.end()) given[field] = found->second;
    const Object fields(given, {name, "record"}, "BuildRecord", NEEDED);
    BuildRecord record{fields.get<std::string>("flavour"),
                       fields.get<std::string>("version"),
                       fields.get<std::optional<std::string>>("compute_capability"),
                       fields.get<std::vector<std::string>>("targets"),
                       fields.get<bool>("version_compatible"),
                       fields.get<std::string>("hardware_compatibility")};
    check_one_of(fields.at(), "flavour", record.flavour, {"tensorrt", "tensorrt_rtx"});
    return record;
}

std::string BuildRecord::built_for() const {
    std::string gpus = targets.empty() ? compute_capability.value_or("an unknown GPU") : joined(targets);
    if (hardware_compatibility == "ampere_plus") gpus = "sm_80 and later";
    return title(flavour) + " " + version + " for " + gpus;
}

std::string title(const std::string& flavour) { return flavour == "tensorrt_rtx" ? "TensorRT-RTX" : "TensorRT"; }

std::string mismatch(const BuildRecord& record, const std::string& version, const Capability& capability) {
    if (version_fits(record, version) && gpu_fits(record, capability)) return "";
    return "built with " + record.built_for() + "; here is " + version + " on " + sm_name(capability);
}

}  // namespace denseport
