// Runs an engine with TensorRT or TensorRT-RTX, on a GPU; as denseport.runtime.backends.tensorrt. A build has one of
// the two: DENSEPORT_TENSORRT is its name, "tensorrt" or "tensorrt_rtx".
#pragma once

#include <filesystem>
#include <memory>

#include "backends/engine_record.hpp"
#include "backends/session.hpp"

namespace denseport {

std::string tensorrt_version();              // of the library that is loaded, whole
std::optional<Capability> gpu_capability();  // of the GPU that engines run on; nothing: there is none

// An engine is native code: give only a file whose hash was verified.
//
// Throws MachineError: TensorRT, the driver or the GPU is missing; BundleError: it cannot be opened.
std::unique_ptr<Session> open_tensorrt(const std::filesystem::path& model, const BuildRecord& record);

}  // namespace denseport
