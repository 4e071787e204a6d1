#include "bundle/artifact.hpp"

#include <algorithm>
#include <regex>

#include "system/text.hpp"

namespace denseport {
namespace {

const std::vector<std::string> TARGETS = {ANY, FOR_CPU, FOR_OPENVINO, FOR_TENSORRT, "tensorrt_rtx"};

template <class T>
std::vector<std::string> keys(const std::map<std::string, T>& items) {
    std::vector<std::string> found;
    for (const auto& [key, _] : items) found.push_back(key);
    return found;
}

bool is_date(const std::string& text) {
    static const std::regex iso(
        "\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])"
        "([T ]([01]\\d|2[0-3]):[0-5]\\d(:[0-5]\\d([.,]\\d{3}|[.,]\\d{6})?)?(Z|[+-]([01]\\d|2[0-3]):?[0-5]\\d)?)?");
    return text.size() < 64 && std::regex_match(text, iso);  // as Denseport writes them
}

}  // namespace

void decode(const Json& value, const At& at, Proof& out) {
    const Object fields(value, at, "Proof", {"against", "arithmetic", "machine", "date", "figures"});
    out = {fields.get<std::string>("against"), fields.get<std::string>("arithmetic"),
           fields.get<std::string>("machine"), fields.get<std::string>("date"), fields.get<std::string>("figures")};
    check_one_of(at, "against", out.against, {"torch", "onnx", "fp32", "labels"});
    check_one_of(at, "arithmetic", out.arithmetic, FLOATS);
    if (!is_date(out.date)) throw at.error("Invalid isoformat string: " + in_quotes(out.date));
}

void decode(const Json& value, const At& at, Artifact& out) {
    const Object fields(
        value, at, "Artifact",
        {"kind", "precision", "float_precision", "target", "output", "fused", "made_of", "main", "files"},
        {"proof", "record"});
    out.kind = fields.get<std::string>("kind");
    out.precision = fields.get<std::string>("precision");
    out.float_precision = fields.get<std::string>("float_precision");
    out.target = fields.get<std::string>("target");
    out.output = fields.get<std::string>("output");
    out.fused = fields.get<bool>("fused");
    out.made_of = fields.get<std::optional<std::string>>("made_of");
    out.main = fields.get<std::string>("main");
    out.files = fields.get<std::map<std::string, std::string>>("files");
    out.proof = fields.get<std::vector<Proof>>("proof", {});
    out.record = fields.get<std::map<std::string, Json>>("record", {});
    check_one_of(at, "kind", out.kind, {"onnx", "engine"});
    check_one_of(at, "precision", out.precision, PRECISIONS);
    check_one_of(at, "target", out.target, TARGETS);
    check_one_of(at, "output", out.output, {"logits", "mask", "depth"});
    check_one_of(at, "float_precision", out.float_precision,
                 out.is_quantized() ? FLOATS : std::vector<std::string>{out.precision});
    check_one_of(at, "main", out.main, keys(out.files));
    for (const Proof& proof : out.proof) check_one_of(at, "proof's figures", proof.figures, keys(out.record));
}

bool Artifact::is_compared() const {
    return std::any_of(proof.begin(), proof.end(),
                       [&](const Proof& each) { return each.arithmetic == float_precision; });
}

std::optional<MachineVerdict> MachineVerdict::of(const Artifact& artifact, const std::string& name) {
    const auto found = artifact.record.find("verdict");
    if (found == artifact.record.end() || found->second.is_null()) return std::nullopt;
    const Object fields(found->second, {name, "verdict"}, "MachineVerdict",
                        {"machine", "cpus", "session", "seconds", "speed_ratio", "agreement", "miou", "fp32_miou",
                         "labelled", "within_budget", "accepted", "reason", "versions", "date"});
    MachineVerdict verdict{fields.get<std::string>("machine"), fields.get<std::map<std::string, double>>("seconds"),
                           fields.get<bool>("accepted"), fields.get<std::string>("reason")};
    return verdict;
}

}  // namespace denseport
