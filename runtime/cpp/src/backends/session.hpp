// The contract of a back end: an opened artifact.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bundle/artifact.hpp"

namespace denseport {

// Numbers in rows, C order.
struct Tensor {
    std::vector<long long> shape;
    std::vector<float> values;
};

// An opened artifact, arrays in, arrays out. Safe to call from several threads.
class Session {
public:
    virtual ~Session() = default;
    // Logits (1, C, h, w) of a normalised image (1, 3, H, W). Throws BundleError: the model cannot be run on it;
    // MachineError: memory ran out.
    virtual Tensor run(const Tensor& image) const = 0;
    virtual std::string description() const = 0;  // library, version, threads; for people
};

inline const std::string FREE_MEMORY = "Give smaller images or batches, or free some memory.";

// Throws MachineError: what the artifact needs is not in this build or on this machine; BundleError: it cannot be
// loaded.
#ifdef DENSEPORT_OPENVINO
std::unique_ptr<Session> open_openvino(const std::filesystem::path& model, const Artifact& artifact, int threads);
#endif
#ifdef DENSEPORT_ONNXRUNTIME
// ``cache``: as of `Options`; OutputError: it cannot be used.
std::unique_ptr<Session> open_onnxruntime(const std::filesystem::path& model, const Artifact& artifact, int threads,
                                          const std::filesystem::path& cache);
#endif

// Throws BundleError unless a result is (1, C, h, w).
void check_logits(const std::filesystem::path& model, const Tensor& image, const std::vector<long long>& shape);

}  // namespace denseport
