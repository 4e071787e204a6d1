// One runnable file of a bundle, and what it was found to be worth on one kind of machine; as
// denseport.runtime.bundle.artifact and .verdict.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle/decode.hpp"

namespace denseport {

inline const std::string ANY = "any", FOR_CPU = "onnxruntime-cpu", FOR_OPENVINO = "openvino", FOR_TENSORRT = "tensorrt";
inline const std::vector<std::string> FLOATS = {"fp32", "fp16", "bf16"};
inline const std::vector<std::string> PRECISIONS = {"fp32", "fp16", "bf16", "int8", "fp8"};

// A comparison of an artifact with something that is trusted.
struct Proof {
    std::string against, arithmetic, machine, date, figures;
};

struct Artifact {
    std::string kind;  // "onnx" or "engine"
    std::string precision;
    std::string float_precision;  // what the float part of a quantized artifact computes in; else the precision
    std::string target;
    std::string output;  // "logits" or "mask"
    bool fused = false;
    std::optional<std::string> made_of;
    std::string main;                          // the file that is opened
    std::map<std::string, std::string> files;  // name to sha256
    std::vector<Proof> proof;
    std::map<std::string, Json> record;

    bool is_quantized() const { return precision == "int8" || precision == "fp8"; }
    bool is_compared() const;  // in its own arithmetic
};

void decode(const Json& value, const At& at, Artifact& out);

// Speed and accuracy of an artifact beside FP32, on one kind of machine.
struct MachineVerdict {
    std::string machine;
    std::map<std::string, double> seconds;  // of the network for an image, by artifact
    bool accepted = false;                  // within the budget, and faster than FP32
    std::string reason;

    // In an artifact's record; nothing where nothing was measured. Throws BundleError: a damaged one.
    static std::optional<MachineVerdict> of(const Artifact& artifact, const std::string& name);
};

}  // namespace denseport
