// Sliding windows over an image of any size, in memory that grows with its width and not with its area; as
// denseport.runtime.pipeline.sliding. An image that is seen whole is one window.
//
// The windows go row by row, left to right. A tile of the image is decided as soon as the last window that it needs has
// been seen; a window's logits are kept whole until the tiles on its right edge are decided, and from then on only
// those rows that the next row of windows overlaps.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "pipeline/reduce.hpp"

namespace denseport {

class Sliding {
public:
    Sliding(Windows windows, Placement place, Decision decision, int threads);

    // Logits (1, C, h, w) of the window in row ``r`` and column ``c``: paints the tiles for which it was the last one.
    void take(int r, int c, Tensor logits);
    const cv::Mat& mask() const { return canvas_->mask; }

private:
    // The windows along one axis, and which tiles touch them. Both go upwards: the tiles that a window touches are
    // neighbours, and so are a tile's windows.
    struct Side {
        std::vector<std::vector<Block>> blocks;  // [window][tile]
        std::vector<std::vector<int>> windows;   // of each tile
        std::vector<int> ends;                   // of each window: the one with which the last of its tiles is decided

        explicit Side(std::vector<std::vector<Block>> blocks);
        std::vector<int> ready(int seen) const;       // the tiles that a window is the last of
        int needed_from(int window, int seen) const;  // the first logit that is needed after ``seen``; -1: none
    };
    // A window's logits from row ``top`` on.
    struct Kept {
        Tensor logits;
        int top = 0;
    };

    std::vector<Strip> strips(int row, const std::vector<int>& tiles) const;
    void trim(int row, int column, int seen);

    Windows windows_;
    Placement place_;
    Decision decision_;
    int threads_;
    std::unique_ptr<Side> rows_, cols_;
    std::unique_ptr<Canvas> canvas_;
    std::map<std::pair<int, int>, Kept> kept_;  // by row and column of windows
};

}  // namespace denseport
