#include "pipeline/reduce.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "system/parallel.hpp"

namespace denseport {
namespace {

// Of each class of a strip, the smallest and the largest logit of each column over the rows that it touches. Tiles
// overlap in the logits that they touch: this is found once for all of a row.
struct Bounds {
    std::vector<float> low, high;  // (classes, width)

    explicit Bounds(const Strip& strip) {
        const auto width = std::size_t(strip.logits.width);
        for (int c = 0; c < strip.logits.classes; ++c) {
            const float* values = strip.logits.row(c, strip.rows->first);
            low.insert(low.end(), values, values + width);
            high.insert(high.end(), values, values + width);
            float *lows = &low[std::size_t(c) * width], *highs = &high[std::size_t(c) * width];
            for (int y = 1; y < strip.rows->count; ++y) {
                values = strip.logits.row(c, strip.rows->first + y);
                for (std::size_t x = 0; x < width; ++x) {
                    lows[x] = std::min(lows[x], values[x]);
                    highs[x] = std::max(highs[x], values[x]);
                }
            }
        }
    }
};

// The part of a strip that a tile touches.
struct Patch {
    const Strip* strip;
    const Bounds* bounds;
    const Block* cols;
};

// The logits of some classes in a patch, resampled along the columns: (rows that it touches, classes, TILE).
struct Widened {
    const Block* rows;
    std::vector<float> values;
    std::size_t classes;

    Widened(const Patch& patch, const std::vector<int>& kept) : rows(patch.strip->rows), classes(kept.size()) {
        const Block& cols = *patch.cols;
        values.resize(std::size_t(rows->count) * classes * TILE);
        float* out = values.data();
        for (int y = 0; y < rows->count; ++y)
            for (const int of_class : kept) {
                const float* row = patch.strip->logits.row(of_class, rows->first + y) + cols.first;
                for (int x = 0; x < cols.outputs; ++x) {
                    const float *weights = &cols.weights[std::size_t(x * cols.taps)],
                                *taps = row + cols.start[std::size_t(x)];
                    float sum = 0;
                    for (int t = 0; t < cols.taps; ++t) sum += weights[t] * taps[t];
                    out[x] = sum;
                }
                out += TILE;
            }
    }

    // Adds the logits of the ``k``-th class in row ``y`` of the tile.
    void add(int y, std::size_t k, float* sums) const {
        const float* weights = &rows->weights[std::size_t(y * rows->taps)];
        for (int t = 0; t < rows->taps; ++t) {
            const float weight = weights[t];
            if (weight == 0) continue;
            const float* row = &values[(std::size_t(rows->start[std::size_t(y)] + t) * classes + k) * TILE];
            for (int x = 0; x < TILE; ++x) sums[x] += weight * row[x];
        }
    }
};

using Row = std::array<float, TILE>;

// An output is a weighted mean of its patch: a class whose largest logit there lies below the smallest logit of another
// class wins nowhere in the tile. The others, ascending, so that the first of equal classes wins.
std::vector<int> contenders(const std::vector<Patch>& patches, int classes) {
    std::vector<float> low(std::size_t(classes), std::numeric_limits<float>::infinity());
    std::vector<float> high(std::size_t(classes), -std::numeric_limits<float>::infinity());
    for (const Patch& patch : patches)
        for (int c = 0; c < classes; ++c) {
            const std::size_t at = std::size_t(c * patch.strip->logits.width + patch.cols->first);
            for (std::size_t x = at; x < at + std::size_t(patch.cols->count); ++x) {
                low[std::size_t(c)] = std::min(low[std::size_t(c)], patch.bounds->low[x]);
                high[std::size_t(c)] = std::max(high[std::size_t(c)], patch.bounds->high[x]);
            }
        }
    const float best = *std::max_element(low.begin(), low.end());
    std::vector<int> found;
    for (int c = 0; c < classes; ++c)
        if (high[std::size_t(c)] >= best) found.push_back(c);
    return found;
}

template <class Pixel>
class Tile {
public:
    Tile(cv::Mat& mask, int i, int j) : mask_(mask), top_(i * TILE), left_(j * TILE) {
        height_ = std::min(TILE, mask.rows - top_);
        width_ = std::min(TILE, mask.cols - left_);
    }

    void fill(int of_class) {
        for (int y = 0; y < height_; ++y) std::fill_n(row(y), width_, Pixel(of_class));
    }

    // The class of the largest logit.
    void winners(const std::vector<Patch>& patches, int classes) {
        const std::vector<int> kept = contenders(patches, classes);
        if (kept.size() == 1) return fill(kept[0]);
        const std::vector<Widened> parts = widened(patches, kept);
        for (int y = 0; y < height_; ++y) {
            Row best{}, values;
            std::array<int, TILE> index{};
            for (const Widened& part : parts) part.add(y, 0, best.data());
            for (std::size_t k = 1; k < kept.size(); ++k) {
                values.fill(0);
                for (const Widened& part : parts) part.add(y, k, values.data());
                for (int x = 0; x < TILE; ++x) {
                    const bool better = values[x] > best[x];
                    best[x] = better ? values[x] : best[x];
                    index[x] = better ? int(k) : index[x];
                }
            }
            for (int x = 0; x < width_; ++x) row(y)[x] = Pixel(kept[std::size_t(index[x])]);
        }
    }

    // The class of the highest mean probability over the views.
    void likeliest(const std::vector<std::vector<Patch>>& views, int classes, std::optional<double> threshold) {
        std::vector<int> all;
        for (int c = 0; c < classes; ++c) all.push_back(c);
        std::vector<std::vector<Widened>> parts;
        for (const auto& patches : views) parts.push_back(widened(patches, all));
        for (int y = 0; y < height_; ++y) {
            std::vector<Row> mean(std::size_t(classes), Row{});
            for (const auto& view : parts) add_probabilities(view, y, threshold.has_value(), mean);
            for (Row& values : mean)
                for (float& value : values) value /= float(views.size());
            for (int x = 0; x < width_; ++x) row(y)[x] = Pixel(best_of(mean, x, threshold));
        }
    }

private:
    static std::vector<Widened> widened(const std::vector<Patch>& patches, const std::vector<int>& kept) {
        std::vector<Widened> found;
        for (const Patch& patch : patches) found.emplace_back(patch, kept);
        return found;
    }

    // Adds a view's softmax in row ``y``. With a threshold the first class is no output of the network: its logit is 0.
    static void add_probabilities(const std::vector<Widened>& view, int y, bool of_one, std::vector<Row>& mean) {
        std::vector<Row> values(mean.size(), Row{});
        for (std::size_t c = of_one ? 1 : 0; c < values.size(); ++c)
            for (const Widened& part : view) part.add(y, c, values[c].data());
        Row highest = values[0], sum{};
        for (const Row& each : values)
            for (int x = 0; x < TILE; ++x) highest[x] = std::max(highest[x], each[x]);
        for (Row& each : values)
            for (int x = 0; x < TILE; ++x) sum[x] += each[x] = std::exp(each[x] - highest[x]);
        for (std::size_t c = 0; c < values.size(); ++c)
            for (int x = 0; x < TILE; ++x) mean[c][x] += values[c][x] / sum[x];
    }

    static int best_of(const std::vector<Row>& mean, int x, std::optional<double> threshold) {
        if (threshold) return double(mean[1][x]) > double(float(*threshold));
        int best = 0;
        for (int c = 1; c < int(mean.size()); ++c)
            if (mean[std::size_t(c)][x] > mean[std::size_t(best)][x]) best = c;
        return best;
    }

    Pixel* row(int y) { return mask_.ptr<Pixel>(top_ + y) + left_; }

    cv::Mat& mask_;
    int top_, left_, height_, width_;
};

template <class Pixel>
void paint_tile(cv::Mat& mask, int i, int j, const std::vector<std::vector<Patch>>& views, int classes,
                const Decision& decision) {
    Tile<Pixel> tile(mask, i, j);
    if (decision.averaged)
        tile.likeliest(views, classes, decision.threshold);
    else
        tile.winners(views[0], classes);
}

}  // namespace

Canvas::Canvas(const Size& size, int classes, Decision decision)
    : mask(int(size.height), int(size.width), classes <= 256 ? CV_8UC1 : CV_16UC1),
      classes_(classes),
      decision_(decision) {}

void Canvas::paint(const std::vector<int>& rows, const std::vector<int>& cols, const Strips& strips, int threads) {
    parallel(int(rows.size()), threads, [&](int which) {
        const int i = rows[std::size_t(which)];
        const auto views = strips(i);
        std::vector<std::vector<Bounds>> bounds;
        for (const auto& view : views) {
            bounds.emplace_back();
            if (!decision_.averaged)
                for (const Strip& strip : view) bounds.back().emplace_back(strip);
        }
        for (std::size_t j = 0; j < cols.size(); ++j) {
            std::vector<std::vector<Patch>> patches(views.size());
            for (std::size_t v = 0; v < views.size(); ++v)
                for (std::size_t s = 0; s < views[v].size(); ++s)
                    if (const Strip& strip = views[v][s]; strip.cols[j]->count > 0)
                        patches[v].push_back({&strip, decision_.averaged ? nullptr : &bounds[v][s], strip.cols[j]});
            if (mask.depth() == CV_8U)
                paint_tile<std::uint8_t>(mask, i, cols[j], patches, classes_, decision_);
            else
                paint_tile<std::uint16_t>(mask, i, cols[j], patches, classes_, decision_);
        }
    });
}

}  // namespace denseport
