// OpenCV's decoders and encoders of files. In a shared build they are a library of their own, loaded with the first
// file: with what they need in their turn (on Debian a hundred libraries) they take 40 MiB, for which a program that
// has its images from a camera has no use.
#pragma once

#include <vector>

#include <opencv2/core/mat.hpp>

namespace denseport {

struct Codecs {
    cv::Mat (*decode)(const std::vector<unsigned char>& data, int flags);  // as cv::imdecode
    bool (*encode_png)(const cv::Mat& image, std::vector<unsigned char>& data, const std::vector<int>& parameters);
};

// Throws MachineError: the library is not there.
const Codecs& codecs();

}  // namespace denseport

extern "C" const denseport::Codecs* denseport_codecs();  // of that library
