#include "pipeline/resample.hpp"

#include <algorithm>
#include <cmath>

namespace denseport {

ResampleMatrix ResampleMatrix::linear(long long n_in, long long n_out, bool align_corners) {
    // torch computes the source in float32 with one rounding (a fused multiply-add), and so do we.
    std::vector<Tap> taps;
    const float step = float(n_in - 1) / float(std::max(n_out - 1, 1LL));
    const double scale = float(n_in) / float(n_out);
    for (long long at = 0; at < n_out; ++at) {
        const float source = align_corners ? step * float(at) : std::max(float(scale * (double(at) + 0.5) - 0.5), 0.0F);
        const long long below = std::min(static_cast<long long>(source), n_in - 1);
        const double fraction = double(source) - double(below);
        taps.push_back({below, 1 - fraction});
        taps.push_back({std::min(below + 1, n_in - 1), fraction});
    }
    return banded(n_in, std::size_t(n_out), taps);
}

namespace {

// The weight of a sample so far away, from 0 to 2.
float cubic_kernel(float x) {
    constexpr float A = -0.75F;
    if (x <= 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
    return ((A * x - 5 * A) * x + 8 * A) * x - 4 * A;
}

}  // namespace

ResampleMatrix ResampleMatrix::cubic(long long n_in, long long n_out, bool align_corners) {
    std::vector<Tap> taps;
    const float step = float(n_in - 1) / float(std::max(n_out - 1, 1LL));
    const double scale = float(n_in) / float(n_out);
    for (long long at = 0; at < n_out; ++at) {
        const float source = align_corners ? step * float(at) : float(scale * (double(at) + 0.5) - 0.5);
        const float first = std::min(std::floor(source), float(n_in - 1));
        const float fraction = std::clamp(source - first, 0.0F, 1.0F);
        for (int tap = -1; tap < 3; ++tap)
            taps.push_back({std::clamp(static_cast<long long>(first) + tap, 0LL, n_in - 1),
                            cubic_kernel(std::abs(fraction - float(tap)))});
    }
    return banded(n_in, std::size_t(n_out), taps);
}

// From the taps of each output, as many of each: equal inputs are merged, those of weight zero dropped.
ResampleMatrix ResampleMatrix::banded(long long n_in, std::size_t n_out, const std::vector<Tap>& taps) {
    ResampleMatrix found;
    found.n_in_ = n_in;
    const std::size_t each = taps.size() / n_out;
    std::vector<long long> first(n_out, n_in), last(n_out, -1);
    for (std::size_t i = 0; i < n_out; ++i)
        for (std::size_t t = i * each; t < (i + 1) * each; ++t)
            if (taps[t].weight != 0) {
                first[i] = std::min(first[i], taps[t].index);
                last[i] = std::max(last[i], taps[t].index);
            }
    for (std::size_t i = 0; i < n_out; ++i) found.taps_ = std::max(found.taps_, int(last[i] - first[i] + 1));
    std::vector<double> band(n_out * std::size_t(found.taps_));
    for (std::size_t i = 0; i < n_out; ++i) {
        found.start_.push_back(std::min(first[i], n_in - found.taps_));
        for (std::size_t t = i * each; t < (i + 1) * each; ++t)
            if (taps[t].weight != 0)
                band[i * std::size_t(found.taps_) + std::size_t(taps[t].index - found.start_[i])] += taps[t].weight;
    }
    found.weights_.assign(band.begin(), band.end());
    return found;
}

ResampleMatrix ResampleMatrix::after(const ResampleMatrix& first) const {
    std::vector<Tap> taps;
    for (std::size_t i = 0; i < start_.size(); ++i)
        for (std::size_t t = 0; t < std::size_t(taps_); ++t) {
            const auto middle = std::size_t(start_[i]) + t;
            for (std::size_t u = 0; u < std::size_t(first.taps_); ++u)
                taps.push_back({first.start_[middle] + static_cast<long long>(u),
                                double(weights_[i * std::size_t(taps_) + t]) *
                                    double(first.weights_[middle * std::size_t(first.taps_) + u])});
        }
    return banded(first.n_in_, start_.size(), taps);
}

ResampleMatrix ResampleMatrix::flipped() const {
    ResampleMatrix found = *this;
    for (std::size_t i = 0; i < start_.size(); ++i) {
        found.start_[i] = n_in_ - start_[i] - taps_;
        const auto band = found.weights_.begin() + std::ptrdiff_t(i) * taps_;
        std::reverse(band, band + taps_);
    }
    return found;
}

ResampleMatrix ResampleMatrix::widened(long long n_in) const {
    ResampleMatrix found = *this;
    found.n_in_ = n_in;
    return found;
}

ResampleMatrix ResampleMatrix::window(long long begin, const std::vector<long long>& counts) const {
    ResampleMatrix found;
    found.n_in_ = n_in_;
    found.taps_ = taps_;
    found.start_.assign(counts.size(), 0);
    found.weights_.assign(counts.size() * std::size_t(taps_), 0);
    for (std::size_t i = 0; i < start_.size(); ++i) {
        const std::size_t at = std::size_t(begin) + i;
        found.start_[at] = start_[i];
        for (std::size_t t = 0; t < std::size_t(taps_); ++t)
            found.weights_[at * std::size_t(taps_) + t] =
                float(double(weights_[i * std::size_t(taps_) + t]) / double(counts[at]));
    }
    return found;
}

Block ResampleMatrix::block(std::size_t low, std::size_t high) const {
    std::vector<Tap> taps;
    long long first = n_in_, last = -1;
    for (std::size_t i = low; i < high; ++i)
        for (std::size_t t = 0; t < std::size_t(taps_); ++t) {
            const long long index = start_[i] + static_cast<long long>(t);
            const float weight = weights_[i * std::size_t(taps_) + t];
            taps.push_back({index, weight});
            if (weight != 0) first = std::min(first, index), last = std::max(last, index);
        }
    Block found;
    if (last < 0) return found;
    for (Tap& tap : taps) tap.index -= first;  // of weight zero some are then outside, and dropped
    const ResampleMatrix part = banded(last - first + 1, high - low, taps);
    found.first = int(first);
    found.count = int(part.n_in_);
    found.outputs = int(high - low);
    found.taps = part.taps_;
    // Of an output that the window does not cover, any place will do.
    for (const long long start : part.start_) found.start.push_back(int(std::max(0LL, start)));
    found.weights = part.weights_;
    return found;
}

std::vector<float> ResampleMatrix::apply(const std::vector<float>& values) const {
    const std::size_t width = values.size() / std::size_t(n_in_);
    std::vector<float> found(start_.size() * width);
    for (std::size_t i = 0; i < start_.size(); ++i)
        for (std::size_t t = 0; t < std::size_t(taps_); ++t) {
            const float weight = weights_[i * std::size_t(taps_) + t];
            const float* in = &values[(std::size_t(start_[i]) + t) * width];
            for (std::size_t x = 0; x < width; ++x) found[i * width + x] += weight * in[x];
        }
    return found;
}

std::vector<Block> ResampleMatrix::blocks() const {
    std::vector<Block> found;
    for (std::size_t low = 0; low < start_.size(); low += TILE)
        found.push_back(block(low, std::min(low + TILE, start_.size())));
    return found;
}

namespace {

std::vector<std::vector<Block>> axis(long long n_in, const std::vector<Span>& spans, long long total, long long cut,
                                     long long size, const Placement& place, bool flip) {
    ResampleMatrix to_image = ResampleMatrix::linear(total - cut, size, place.align_corners);
    if (flip) to_image = to_image.flipped();
    to_image = to_image.widened(total);
    std::vector<long long> counts(static_cast<std::size_t>(total), 0);
    for (const Span& span : spans)
        for (long long i = span.start; i < span.stop; ++i) ++counts[std::size_t(i)];
    std::vector<std::vector<Block>> found;
    for (const Span& span : spans) {
        const ResampleMatrix window = ResampleMatrix::linear(n_in, span.length(), place.align_corners);
        found.push_back(to_image.after(window.window(span.start, counts)).blocks());
    }
    return found;
}

}  // namespace

Axes slide_axes(long long height, long long width, const Windows& windows, const Placement& place) {
    const auto& [resized, size, cut, flip, align_corners] = place;
    return {axis(height, windows.rows, resized.height, cut.height, size.height, place, false),
            axis(width, windows.cols, resized.width, cut.width, size.width, place, flip)};
}

}  // namespace denseport
