// What an engine was built for, and whether that is what is here; as denseport.runtime.bundle.engine_record.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle/artifact.hpp"

namespace denseport {

using Capability = std::pair<long long, long long>;  // of a GPU to compute: major, minor

// The part of an engine's record that says where it runs.
struct BuildRecord {
    std::string flavour;                            // "tensorrt" or "tensorrt_rtx"
    std::string version;                            // of TensorRT, whole
    std::optional<std::string> compute_capability;  // of the GPU that it was built on, "sm_86"
    std::vector<std::string> targets;               // compute capabilities it runs on; empty: that of the GPU
    bool version_compatible = false;                // also opens in later releases
    std::string hardware_compatibility;             // "none", "same_compute_capability" or "ampere_plus"

    // Throws BundleError: a field is missing or mistyped.
    static BuildRecord of(const Artifact& engine, const std::string& name);
    std::string built_for() const;  // "TensorRT 11.4 for sm_86"
};

std::string title(const std::string& flavour);  // "TensorRT", "TensorRT-RTX"

// Why an engine does not run on a TensorRT of its flavour and a GPU, as one clause; empty if it does.
std::string mismatch(const BuildRecord& record, const std::string& version, const Capability& capability);

}  // namespace denseport
