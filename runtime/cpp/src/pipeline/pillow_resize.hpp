// Pillow's resizing of 8-bit images without Pillow, equal to the bit; as denseport.runtime.pipeline.pillow_resize,
// which has the source.
#pragma once

#include <string>

#include <opencv2/core/mat.hpp>

#include "bundle/preprocessing.hpp"

namespace denseport {

// interpolation: "nearest", or with antialias "box", "bilinear", "hamming", "bicubic", "lanczos". CV_8UC3 in and out.
cv::Mat pillow_resize(const cv::Mat& image, const Size& size, const std::string& interpolation);

}  // namespace denseport
