// The bytes of an ONNX file, of which only the names of its external files are read.
#include <cstdint>

#include "bundle/external_data.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        denseport::external_files(data, size);
    } catch (const denseport::NotProtobuf&) {
    }
    return 0;
}
