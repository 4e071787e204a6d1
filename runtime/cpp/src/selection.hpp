// Which artifact of a bundle runs on this machine, and why not the others; as denseport.runtime.selection does on a
// machine without a GPU.
#pragma once

#include <map>
#include <string>

#include "bundle/bundle.hpp"

namespace denseport {

// The artifact to run.
struct Selection {
    std::string name;
    std::string why;
    std::map<std::string, std::string> others;  // name and reason of each artifact that was passed over
    std::string caution;                        // what nobody has shown of it yet, and the command that does
};

// What this machine and this build of the library have.
struct Machine {
    bool onnxruntime, openvino, bf16, vnni;
    std::string processor;

    static Machine inspect();
};

// Throws BundleError: there is no artifact ``wanted`` (empty: the best one), or a record is damaged; InputError: it
// gives masks; MachineError: it does not run here. Engines run by name alone.
Selection select_artifact(const Bundle& bundle, const std::string& wanted, const Machine& machine);

// Whether an artifact is opened by OpenVINO. Without ONNX Runtime, FP32 of any tool is.
bool runs_on_openvino(const Artifact& artifact, const Machine& machine);

// Why an artifact does not run, and the remedy; two empty texts if it does.
struct Unsupported {
    std::string reason, remedy;
};
Unsupported why_unsupported(const Artifact& artifact, const Machine& machine);

}  // namespace denseport
