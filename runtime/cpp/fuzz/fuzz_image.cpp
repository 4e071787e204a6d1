// The bytes of an image file. A file that its header says to be large is not decoded: that is OpenCV's limit to test.
#include <cstdint>

#include "media/images.hpp"

using namespace denseport;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const Load load{(data[0] & 1) != 0, (data[0] & 2) != 0, false, (data[0] & 4) != 0 ? "pillow" : "opencv"};
    try {
        decode_image({data + 1, data + size}, "image", load);
    } catch (const Error&) {
    }
    return 0;
}
