// Weights of a model where they lie in its file. OpenVINO copies those of an ONNX file, keeps the copy beside what its
// kernels make of them, and reads it again only for inputs of other sizes.
#pragma once

#include <filesystem>
#include <memory>

#include <openvino/core/model.hpp>

#include "system/files.hpp"

namespace denseport {

// Lets the large constants of a model that was read from a file share the file's memory, which lives as long as they
// do.
std::shared_ptr<const Mapped> share_weights(ov::Model& model, const std::filesystem::path& file);

}  // namespace denseport
