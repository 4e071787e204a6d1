// Which files an ONNX model makes its reader open; as denseport.runtime.bundle.external_data.
#pragma once

#include <cstddef>
#include <set>
#include <stdexcept>
#include <string>

namespace denseport {

// The bytes are no protobuf message.
class NotProtobuf : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The locations of all external tensors of an ONNX model, as they are written in it.
std::set<std::string> external_files(const unsigned char* data, std::size_t size);

}  // namespace denseport
