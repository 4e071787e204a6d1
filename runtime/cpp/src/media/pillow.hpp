// What Pillow does to files. This runtime decodes with OpenCV alone: it takes those files that both decode to the same
// bits, and refuses the others by name.
#pragma once

#include <string>
#include <vector>

#include <opencv2/core/mat.hpp>

namespace denseport {

// Why Pillow may decode a file otherwise than OpenCV; empty: it does not.
//
// orientation: the image is turned as its EXIF data says.
std::string why_not_as_pillow(const std::vector<unsigned char>& data, bool orientation);

// An image (CV_8UC3, BGR) without its colours, by Pillow's weights of them.
cv::Mat grey_of_pillow(const cv::Mat& image);

}  // namespace denseport
