// From an image to the network's input, pixel for pixel what Python's runtime computes; as
// denseport.runtime.pipeline.preprocess. OpenCV pads in both, and resizes but where Pillow does.
#pragma once

#include "backends/session.hpp"
#include "bundle/preprocessing.hpp"

namespace denseport {

// The image (CV_8UC3, BGR) resized and padded as the steps before normalising say; CV_8UC3 or CV_32FC3.
cv::Mat fit_image(const cv::Mat& image, const Steps& steps, bool flip);

// Writes an image, normalised, into a network input (1, C, H, W), from a row and a column of it on.
void normalise(const cv::Mat& image, const Steps& steps, long long top, long long left, Tensor& out);

}  // namespace denseport
