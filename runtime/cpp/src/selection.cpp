#include "selection.hpp"

#include <algorithm>
#include <tuple>

#ifdef DENSEPORT_TENSORRT
#include "backends/tensorrt.hpp"
#endif
#include "backends/engine_record.hpp"
#include "system/cpus.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

const std::vector<std::string> CPU_ORDER = {"fp32", "fp16"};  // from fast to slow, unasked
const std::string FOR_SESSIONS =
    "Choose an artifact that gives logits (denseport inspect); this one is for a session or your own program.";
const std::string NO_BF16 = "this processor has no BF16 arithmetic (avx512_bf16 or amx_bf16; bf16 on ARM)";
const std::string NO_VNNI =
    "this processor has no VNNI (avx512_vnni or avx_vnni; asimddp on ARM): OpenVINO's INT8 sums saturate there";

std::string made_for(const std::string& target) {
    if (target == ANY) return "TensorRT and other ONNX tools";
    if (target == FOR_CPU) return "ONNX Runtime on CPUs";
    return target == FOR_OPENVINO ? "OpenVINO on CPUs" : "TensorRT";
}

std::string why_no_logits(const Artifact& artifact) {
    return artifact.output != "mask"
               ? ""
               : "gives masks of the network's input, not logits that can be resized to the image";
}

// Whether an artifact runs unasked only where it was measured as faster.
bool needs_verdict(const Artifact& artifact) { return artifact.is_quantized() || artifact.target == FOR_OPENVINO; }

const Json* entry(const Json& object, const char* name) {
    return object.is_object() && object.contains(name) ? &object.at(name) : nullptr;
}

// Whether a check of a record was made and failed. Throws BundleError: it does not say.
bool failed(const Artifact& artifact, const Json* check) {
    if (!check || !is_true(*check)) return false;
    const Json* passed = entry(*check, "passed");
    if (!passed)
        throw BundleError(artifact.main + ": its record is damaged: a check without 'passed'",
                          "Build or measure the artifact again.");
    return !is_true(*passed);
}

std::string why_not_accurate(const Artifact& artifact) {
    const auto audit = artifact.record.find("audit"), accuracy = artifact.record.find("accuracy");
    if (audit != artifact.record.end() && failed(artifact, &audit->second)) return "failed its audit";
    const bool is_fp32 =
        artifact.kind == "onnx" && artifact.precision == "fp32";  // nothing is closer to the checkpoint
    const Json* gate = accuracy == artifact.record.end() ? nullptr : entry(accuracy->second, "gate");
    if (is_fp32 || !failed(artifact, gate)) return "";
    std::vector<std::string> reasons;
    if (const Json* found = entry(*gate, "reasons"); found && found->is_array())
        for (const Json& reason : *found)
            if (reason.is_string()) reasons.push_back(reason.get<std::string>());
    return "failed its gate: " + joined(reasons, "; ");
}

std::string why_not(const Artifact& artifact, const Machine& machine) {
    if (const std::string reason = why_unsupported(artifact, machine).reason; !reason.empty()) return reason;
    if (artifact.kind == "engine") return "runs in C++ only when it is asked for";
    if (artifact.target != ANY && artifact.target != FOR_CPU && artifact.target != FOR_OPENVINO)
        return "is made for " + title(artifact.target) + "; ONNX Runtime runs it only when it is asked for";
    return why_not_accurate(artifact);
}

// Why no verdict lets an artifact run instead of ``rival``; empty where one does.
std::string why_no_verdict(const std::string& name, const Artifact& artifact, const std::string& rival,
                           const Machine& machine) {
    const auto verdict = MachineVerdict::of(artifact, name);
    const std::string what = artifact.target == FOR_OPENVINO ? "OpenVINO" : artifact.precision;
    if (!verdict) return what + " runs only when it is asked for: it was not measured on this machine";
    if (verdict->machine != machine.processor) {
        const std::string measuring =
            artifact.target == FOR_OPENVINO ? "build --for-this-machine" : "calibrate --measure " + name;
        return what + " runs only when it is asked for: it was measured on " + verdict->machine + ", not on " +
               machine.processor + "; denseport " + measuring + " does so";
    }
    if (!verdict->accepted) return "not used by itself on this CPU: " + verdict->reason;
    const auto own = verdict->seconds.find(name), other = verdict->seconds.find(rival);
    if (own == verdict->seconds.end() || other == verdict->seconds.end()) return "was not measured beside " + rival;
    if (own->second >= other->second)
        return "not used by itself on this CPU: " + fixed(other->second / own->second, 2) + " times as fast as " +
               rival + "; made for " + made_for(artifact.target);
    return "";
}

// The command that compares an artifact, to print.
std::string comparing_command(const std::string& name, const Artifact& artifact) {
    if (artifact.record.count("calibration"))
        return "denseport calibrate BUNDLE --measure " + name + " --images IMAGES";
    std::string command = "denseport build BUNDLE --precision " + artifact.precision;
    if (artifact.is_quantized() && artifact.float_precision != "fp32")
        command += " --float-precision " + artifact.float_precision;
    if (artifact.target == FOR_OPENVINO) command += " --engine openvino";
    return command + (artifact.fused ? " --plugin on" : "") + " --images IMAGES";
}

std::string caution(const std::string& name, const Artifact& artifact) {
    if (artifact.is_compared()) return "";
    const std::string how = artifact.proof.empty() ? "" : " in " + upper(artifact.float_precision);
    return name + " was never compared with FP32" + how + "; this does it: " + comparing_command(name, artifact);
}

Unsupported why_no_engine(const Artifact& engine) {
    const BuildRecord record = BuildRecord::of(engine, engine.main);
#ifdef DENSEPORT_TENSORRT
    if (record.flavour == DENSEPORT_TENSORRT) {
        const std::optional<Capability> gpu = gpu_capability();
        if (!gpu)
            return {"built with " + record.built_for() + "; this machine has no NVIDIA GPU",
                    "Run it on a machine with that GPU."};
        const std::string reason = mismatch(record, tensorrt_version(), *gpu);
        if (reason.empty()) return {};
        return {reason, "Build one for this machine: denseport build BUNDLE --precision " + engine.precision +
                            " --engine " + record.flavour};
    }
#endif
    return {title(record.flavour) + " is not in this build of the library",
            "Build it with -DDENSEPORT_TENSORRT=" + record.flavour + ", or run model.onnx."};
}

std::string runs_on(const Artifact& artifact, const Machine& machine) {
    return std::string(runs_on_openvino(artifact, machine) ? "OpenVINO" : "ONNX Runtime") + " on the CPU";
}

Selection asked_for(const Bundle& bundle, const std::string& name, const Machine& machine) {
    const Artifact& artifact = bundle.artifact(name);
    if (const std::string reason = why_no_logits(artifact); !reason.empty())
        throw InputError(name + " " + reason, FOR_SESSIONS);
    if (const auto [reason, remedy] = why_unsupported(artifact, machine); !reason.empty())
        throw MachineError(name + ": " + reason, remedy);
    return {name, "asked for", {}, caution(name, artifact)};
}

// The best one that needs no verdict; the source where there is none.
std::string best_unmeasured(const Manifest& manifest, const std::map<std::string, std::string>& reasons) {
    const auto rank = [&](const std::string& name) {
        const Artifact& artifact = manifest.artifacts.at(name);
        const auto place = std::find(CPU_ORDER.begin(), CPU_ORDER.end(), artifact.precision) - CPU_ORDER.begin();
        return std::tuple(place, name != manifest.source, artifact.fused, name);
    };
    std::optional<std::string> best;
    for (const auto& [name, artifact] : manifest.artifacts)
        if (reasons.at(name).empty() && !needs_verdict(artifact) && (!best || rank(name) < rank(*best))) best = name;
    return best.value_or(manifest.source);
}

Selection best(const Bundle& bundle, const Machine& machine) {
    const Manifest& manifest = bundle.manifest();
    std::map<std::string, std::string> reasons;
    for (const auto& [name, artifact] : manifest.artifacts) reasons[name] = why_not(artifact, machine);
    const std::string rival = best_unmeasured(manifest, reasons);
    std::map<std::string, double>
        faster;  // name, and its time in units of the rival's: not all were measured in one run
    std::map<std::string, std::string> others;
    for (const auto& [name, artifact] : manifest.artifacts) {
        others[name] = reasons[name];
        if (!reasons[name].empty()) continue;
        const bool measured = needs_verdict(artifact);
        if (measured)
            others[name] = why_no_verdict(name, artifact, rival, machine);
        else
            others[name] = artifact.precision == "fp32"
                               ? "another one is better"
                               : "not used by itself on a CPU, where it is not faster; made for GPUs";
        if (measured && others[name].empty()) {
            const auto seconds = MachineVerdict::of(artifact, name)->seconds;
            faster[name] = seconds.at(name) / seconds.at(rival);
        }
    }
    const auto fastest = std::min_element(faster.begin(), faster.end(),
                                          [](const auto& a, const auto& b) { return a.second < b.second; });
    const std::string chosen = fastest == faster.end() ? rival : fastest->first;
    const Artifact& artifact = bundle.artifact(chosen);
    std::string why = runs_on(artifact, machine);
    if (!faster.empty()) {
        why = MachineVerdict::of(artifact, chosen)->reason + "; " + why;
        for (const auto& [name, _] : faster) others[name] = chosen + " was measured as faster here";
        others[rival] = chosen + " was measured as faster here";
    }
    others.erase(chosen);
    return {chosen, why, others, caution(chosen, artifact)};
}

}  // namespace

Machine Machine::inspect() {
    Machine found{false, false, has_bf16(), has_vnni(), denseport::processor()};
    for (const std::string& backend : backends()) {
        found.openvino = found.openvino || backend == "openvino";
        found.onnxruntime = found.onnxruntime || backend == "onnxruntime";
    }
    return found;
}

bool runs_on_openvino(const Artifact& artifact, const Machine& machine) {
    const bool is_plain = artifact.target == ANY && artifact.precision == "fp32" && !artifact.fused;
    return artifact.target == FOR_OPENVINO || (is_plain && machine.openvino && !machine.onnxruntime);
}

Unsupported why_unsupported(const Artifact& artifact, const Machine& machine) {
    if (const std::string no_logits = why_no_logits(artifact); !no_logits.empty()) return {no_logits, FOR_SESSIONS};
    if (artifact.kind != "onnx") return why_no_engine(artifact);
    if (artifact.fused)
        return {"holds nodes of Denseport's plugin, which runs on GPUs", "Run another artifact, such as model.onnx."};
    if (artifact.target == FOR_OPENVINO) {
        const std::string another = "Run another artifact, or this one on such a processor.";
        if (artifact.float_precision == "bf16" && !machine.bf16) return {NO_BF16, another};
        if (artifact.is_quantized() && !machine.vnni) return {NO_VNNI, another};
        if (!machine.openvino)
            return {"OpenVINO is not in this build of the library", "Build it with -DDENSEPORT_OPENVINO=ON."};
        return {};
    }
    if (artifact.float_precision == "bf16")
        return {"ONNX Runtime has no BF16 operators for CPUs", "Run another artifact, or this one where a GPU is."};
    if (!machine.onnxruntime && !runs_on_openvino(artifact, machine))
        return {"ONNX Runtime is not in this build of the library",
                "Build it with -DDENSEPORT_ONNXRUNTIME=ON, or run model.onnx."};
    return {};
}

Selection select_artifact(const Bundle& bundle, const std::string& wanted, const Machine& machine) {
    if (!wanted.empty()) return asked_for(bundle, wanted, machine);
    try {
        return best(bundle, machine);
    } catch (const BundleError& error) {  // about an artifact's record
        throw BundleError(bundle.path().string() + ": " + error.message(), error.remedy());
    }
}

}  // namespace denseport
