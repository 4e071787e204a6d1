// From logits to the class of each pixel, in one pass over the tiles of the image; as
// denseport.runtime.pipeline.reduce.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include <opencv2/core/mat.hpp>

#include "pipeline/resample.hpp"

namespace denseport {

// The rows from ``top`` on of a window's logits.
struct Logits {
    const float* values = nullptr;  // (classes, height, width)
    int classes = 0, height = 0, width = 0, top = 0;

    const float* row(int of_class, int y) const {  // y counts from the window's own first row
        return values + (std::ptrdiff_t(of_class) * height + (y - top)) * width;
    }
};

// The part of a window's logits that a row of tiles touches.
struct Strip {
    Logits logits;
    const Block* rows;
    std::vector<const Block*> cols;  // of each tile
};

// How the class of a pixel follows from its logits.
struct Decision {
    bool averaged = false;            // several views are averaged as probabilities; else the one view's logits decide
    std::optional<double> threshold;  // of two classes of one output: the first's logit is a constant
};

// Paints the mask (CV_8UC1 or CV_16UC1) tile by tile.
class Canvas {
public:
    Canvas(const Size& size, int classes, Decision decision);

    // Fills the tiles in ``rows`` x ``cols``. ``strips``: of each view, those that a row of tiles touches; one a view
    // at least covers each tile.
    using Strips = std::function<std::vector<std::vector<Strip>>(int row)>;
    void paint(const std::vector<int>& rows, const std::vector<int>& cols, const Strips& strips, int threads);

    cv::Mat mask;

private:
    int classes_;
    Decision decision_;
};

}  // namespace denseport
