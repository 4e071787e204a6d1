// How an image is shown to the network: its views, whole or in sliding windows, at one scale or at several; as
// denseport.runtime.pipeline.views.
#pragma once

#include <vector>

#include "backends/session.hpp"
#include "bundle/protocol.hpp"

namespace denseport {

struct Span {
    long long start, stop;  // pixels
    long long length() const { return stop - start; }
};

// The windows along the rows and along the columns of a size; whole: one that is all of it.
struct Windows {
    std::vector<Span> rows, cols;
};

// One way to show an image to the network.
struct View {
    Steps steps;
    Size size;       // of what the network sees
    Size stretched;  // to which the logits of the whole are resized first: `size`, but for an oddity of upstream
    Size cut;        // pixels at the bottom and at the right that were added, and whose logits are cut off
    bool flip = false;
};

// Throws ImageError: the image would reach the network with a side below one patch, or in a size it does not take.
std::vector<View> protocol_views(const Size& size, const Protocol& protocol, long long patch_size);

Windows windows(const Size& size, const Inference& inference);

// The image (CV_8UC3, BGR) as a view shows it before it is normalised; CV_8UC3 or CV_32FC3.
cv::Mat show(const cv::Mat& image, const View& view);

// The network's input (1, C, h, w) of some rows and columns of what `show` gave; what is padded after normalising lies
// beyond it.
Tensor window_input(const cv::Mat& shown, const View& view, const Span& rows, const Span& cols);

}  // namespace denseport
