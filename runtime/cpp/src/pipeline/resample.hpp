// The way from a network's logits to the image's pixels: one banded matrix for each axis; as
// denseport.runtime.pipeline.resample, which has the reasons and the sources.
#pragma once

#include <memory>
#include <vector>

#include "pipeline/views.hpp"

namespace denseport {

constexpr int TILE = 48;  // pixels a side of a tile of the image

// The part of an axis that makes one tile.
struct Block {
    int first = 0, count = 0;  // the inputs that it touches; none: count is 0
    int outputs = 0, taps = 0;
    std::vector<int> start;      // of each output, counted from `first`
    std::vector<float> weights;  // (outputs, taps)
};

// A banded linear map: out[i] = sum over t of weights[i, t] * in[start[i] + t].
class ResampleMatrix {
public:
    // Bilinear resize without antialias, as torch has it; half-pixel centres unless ``align_corners``.
    static ResampleMatrix linear(long long n_in, long long n_out, bool align_corners);
    // The same, bicubic: a = -0.75, the border repeated.
    static ResampleMatrix cubic(long long n_in, long long n_out, bool align_corners);

    ResampleMatrix after(const ResampleMatrix& first) const;  // the map that applies ``first``, then this one
    ResampleMatrix flipped() const;                           // the same map of the input read backwards
    ResampleMatrix widened(long long n_in) const;             // of an input that goes on beyond its own, for nothing
    // The map onto a longer axis, zero outside of the window that starts at ``begin``; divided by the windows that
    // cover each output.
    ResampleMatrix window(long long begin, const std::vector<long long>& counts) const;
    std::vector<Block> blocks() const;                                 // of each tile along the axis
    std::vector<float> apply(const std::vector<float>& values) const;  // (n_in, any) to (n_out, any)
    long long n_out() const { return static_cast<long long>(start_.size()); }

private:
    struct Tap {
        long long index;
        double weight;
    };
    static ResampleMatrix banded(long long n_in, std::size_t n_out, const std::vector<Tap>& taps);
    Block block(std::size_t low, std::size_t high) const;

    long long n_in_ = 0;
    int taps_ = 1;
    std::vector<long long> start_;
    std::vector<float> weights_;  // (n_out, taps)
};

// Where an image lies in what the network sees.
struct Placement {
    Size resized;       // of what the network sees, to which the logits are resized first
    Size size;          // of the image
    Size cut;           // of `resized`, pixels at the bottom and at the right that are not of the image
    bool flip = false;  // the network saw the image mirrored left to right; the result is mirrored back
    bool align_corners = false;
};

// The blocks of each row of windows and of each column of windows: indices are [window][tile].
struct Axes {
    std::vector<std::vector<Block>> rows, cols;
};

// Of windows whose logits are ``height`` x ``width``.
Axes slide_axes(long long height, long long width, const Windows& windows, const Placement& place);

}  // namespace denseport
