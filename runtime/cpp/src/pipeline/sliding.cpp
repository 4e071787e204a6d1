#include "pipeline/sliding.hpp"

#include <algorithm>
#include <set>

namespace denseport {

Sliding::Side::Side(std::vector<std::vector<Block>> made) : blocks(std::move(made)) {
    windows.resize(blocks[0].size());
    ends.resize(blocks.size());
    for (std::size_t tile = 0; tile < windows.size(); ++tile)
        for (std::size_t window = 0; window < blocks.size(); ++window)
            if (blocks[window][tile].count > 0) windows[tile].push_back(int(window));
    for (std::size_t window = 0; window < blocks.size(); ++window) {
        ends[window] = int(window);
        for (std::size_t tile = 0; tile < windows.size(); ++tile)
            if (blocks[window][tile].count > 0) ends[window] = windows[tile].back();
    }
}

std::vector<int> Sliding::Side::ready(int seen) const {
    std::vector<int> found;
    for (std::size_t tile = 0; tile < windows.size(); ++tile)
        if (windows[tile].back() == seen) found.push_back(int(tile));
    return found;
}

int Sliding::Side::needed_from(int window, int seen) const {
    for (std::size_t tile = 0; tile < windows.size(); ++tile) {
        const Block& block = blocks[std::size_t(window)][tile];
        if (windows[tile].back() > seen && block.count > 0) return block.first;
    }
    return -1;
}

Sliding::Sliding(Windows windows, Placement place, Decision decision, int threads)
    : windows_(std::move(windows)), place_(place), decision_(decision), threads_(threads) {}

void Sliding::take(int r, int c, Tensor logits) {
    if (r == 0 && c == 0) {  // all windows are of one size, and so are their logits: the first tells what is to come
        Axes axes = slide_axes(logits.shape[2], logits.shape[3], windows_, place_);
        rows_ = std::make_unique<Side>(std::move(axes.rows));
        cols_ = std::make_unique<Side>(std::move(axes.cols));
        canvas_ = std::make_unique<Canvas>(place_.size, int(logits.shape[1]), decision_);
    }
    kept_[{r, c}] = {std::move(logits), 0};
    const std::vector<int> tiles = cols_->ready(c);
    if (!tiles.empty())
        canvas_->paint(
            rows_->ready(r), tiles, [&](int row) { return std::vector<std::vector<Strip>>{strips(row, tiles)}; },
            threads_);
    for (std::size_t column = 0; column < cols_->ends.size(); ++column) {
        if (cols_->ends[column] != c) continue;  // with this window all tiles of this column of windows are decided
        for (int row = 0; row <= r; ++row) trim(row, int(column), r);
    }
}

std::vector<Strip> Sliding::strips(int row, const std::vector<int>& tiles) const {
    std::set<int> columns;
    for (const int tile : tiles)
        columns.insert(cols_->windows[std::size_t(tile)].begin(), cols_->windows[std::size_t(tile)].end());
    std::vector<Strip> found;
    for (const int r : rows_->windows[std::size_t(row)])
        for (const int c : columns) {
            const Kept& kept = kept_.at({r, c});
            const auto& shape = kept.logits.shape;
            Strip strip{{kept.logits.values.data(), int(shape[1]), int(shape[2]), int(shape[3]), kept.top},
                        &rows_->blocks[std::size_t(r)][std::size_t(row)],
                        {}};
            for (const int tile : tiles) strip.cols.push_back(&cols_->blocks[std::size_t(c)][std::size_t(tile)]);
            found.push_back(std::move(strip));
        }
    return found;
}

void Sliding::trim(int row, int column, int seen) {
    const auto found = kept_.find({row, column});
    if (found == kept_.end()) return;
    const int first = rows_->needed_from(row, seen);
    if (first < 0) {
        kept_.erase(found);
        return;
    }
    Kept& kept = found->second;
    if (first == kept.top) return;
    const auto classes = std::size_t(kept.logits.shape[1]), width = std::size_t(kept.logits.shape[3]);
    const auto height = std::size_t(kept.logits.shape[2]), dropped = std::size_t(first - kept.top);
    std::vector<float> rest;
    rest.reserve(classes * (height - dropped) * width);
    for (std::size_t k = 0; k < classes; ++k) {
        const auto begin = kept.logits.values.begin() + std::ptrdiff_t((k * height + dropped) * width);
        rest.insert(rest.end(), begin, begin + std::ptrdiff_t((height - dropped) * width));
    }
    kept.logits.values = std::move(rest);
    kept.logits.shape[2] = static_cast<long long>(height - dropped);
    kept.top = first;
}

}  // namespace denseport
