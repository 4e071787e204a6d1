// Where the weights of an ONNX model are: in which other files, as denseport.runtime.bundle.external_data, and where in
// its own.
#pragma once

#include <cstddef>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace denseport {

// The bytes are no protobuf message.
class NotProtobuf : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The locations of all external tensors of an ONNX model, as they are written in it.
std::set<std::string> external_files(const unsigned char* data, std::size_t size);

// Bytes of a file.
struct Range {
    std::size_t begin, end;
};

// The values of all tensors of an ONNX model that are stored in it as they are in memory.
std::vector<Range> stored_weights(const unsigned char* data, std::size_t size);

}  // namespace denseport
