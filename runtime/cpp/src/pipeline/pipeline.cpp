#include "pipeline/pipeline.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

#include "system/text.hpp"

namespace denseport {

Segmentation Pipeline::segment(const cv::Mat& image) const {
    Clock clock;
    const auto views = protocol_views({image.rows, image.cols}, protocol, bundle.manifest().patch_size);
    const cv::Mat mask = protocol.augmentation ? averaged(image, views, clock) : slid(image, views[0], clock);
    return {mask, clock.timings};
}

// One view, window by window; whole: one window.
cv::Mat Pipeline::slid(const cv::Mat& image, const View& view, Clock& clock) const {
    const cv::Mat shown = show(image, view);
    const Windows spans = windows(view.size, protocol.inference);
    std::optional<Sliding> sliding;
    for (std::size_t r = 0; r < spans.rows.size(); ++r)
        for (std::size_t c = 0; c < spans.cols.size(); ++c) {
            const Tensor input = window_input(shown, view, spans.rows[r], spans.cols[c]);
            clock.spent(&Timings::preprocess);
            Tensor logits = network(input);
            clock.spent(&Timings::infer);
            if (!sliding) {
                const Placement place = placement(image, view, logits);
                const Decision decision{false, bundle.manifest().threshold};
                sliding.emplace(windows(place.resized, protocol.inference), place, decision, threads);
            }
            sliding->take(int(r), int(c), std::move(logits));
            clock.spent(&Timings::postprocess);
        }
    return sliding->mask();
}

// Several views, whose probabilities are averaged: all their logits are held.
cv::Mat Pipeline::averaged(const cv::Mat& image, const std::vector<View>& views, Clock& clock) const {
    std::vector<std::vector<Tensor>> logits;
    std::vector<Axes> axes;
    for (const View& view : views) {
        logits.push_back(outputs_of(image, view, clock));
        const Placement place = placement(image, view, logits.back()[0]);
        const auto& shape = logits.back()[0].shape;
        axes.push_back(slide_axes(shape[2], shape[3], windows(place.resized, protocol.inference), place));
    }
    Canvas canvas({image.rows, image.cols}, int(bundle.manifest().classes.size()), {true, bundle.manifest().threshold});
    std::vector<int> rows((std::size_t(image.rows) + TILE - 1) / TILE),
        cols((std::size_t(image.cols) + TILE - 1) / TILE);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = int(i);
    for (std::size_t i = 0; i < cols.size(); ++i) cols[i] = int(i);
    const auto strips = [&](int row) {
        std::vector<std::vector<Strip>> found(views.size());
        for (std::size_t v = 0; v < views.size(); ++v)
            for (std::size_t r = 0; r < axes[v].rows.size(); ++r)
                for (std::size_t c = 0; c < axes[v].cols.size(); ++c) {
                    const Block& block = axes[v].rows[r][std::size_t(row)];
                    if (block.count == 0) continue;
                    const Tensor& tensor = logits[v][r * axes[v].cols.size() + c];
                    const auto& shape = tensor.shape;
                    Strip strip{{tensor.values.data(), int(shape[1]), int(shape[2]), int(shape[3]), 0}, &block, {}};
                    for (const Block& each : axes[v].cols[c]) strip.cols.push_back(&each);
                    found[v].push_back(std::move(strip));
                }
        return found;
    };
    canvas.paint(rows, cols, strips, threads);
    clock.spent(&Timings::postprocess);
    return canvas.mask;
}

std::vector<Tensor> Pipeline::outputs_of(const cv::Mat& image, const View& view, Clock& clock) const {
    const cv::Mat shown = show(image, view);
    const Windows spans = windows(view.size, protocol.inference);
    std::vector<Tensor> found;
    for (const Span& row : spans.rows)
        for (const Span& col : spans.cols) {
            const Tensor input = window_input(shown, view, row, col);
            clock.spent(&Timings::preprocess);
            found.push_back(network(input));
            clock.spent(&Timings::infer);
        }
    return found;
}

Placement Pipeline::placement(const cv::Mat& image, const View& view, const Tensor& logits) const {
    const bool whole = protocol.inference.mode == "whole";
    Placement place{whole ? view.stretched : view.size,
                    {image.rows, image.cols},
                    view.cut,
                    view.flip,
                    bundle.manifest().align_corners};
    // The logits are then resized to the image at once.
    if (whole && !bundle.manifest().via_input && view.cut == Size{}) place.resized = {logits.shape[2], logits.shape[3]};
    return place;
}

// Finite logits of as many classes as the manifest names, or a finite depth.
Tensor Pipeline::network(const Tensor& input) const {
    Tensor found = session.run(input);
    const std::string where = bundle.path().string() + ": " + artifact;
    const bool is_depth = bundle.manifest().depth.has_value();
    const auto named = is_depth ? 1 : bundle.manifest().classes.size();
    if (std::size_t(found.shape[1]) != named) {
        const std::string channels = shown(found.shape[1]);
        const std::string what =
            is_depth ? " gives " + channels + " channels; a depth has one"
                     : " tells " + channels + " classes apart, the manifest names " + std::to_string(named);
        throw BundleError(where + what, "Export or import it again; a manifest is not to be edited by hand.");
    }
    if (!std::all_of(found.values.begin(), found.values.end(), [](float value) { return std::isfinite(value); }))
        throw BundleError(
            where + " gave " + (is_depth ? "depths" : "logits") + " that are not finite",
            "Choose another artifact; of segmentation denseport eval --explain says where they come from.");
    return found;
}

}  // namespace denseport
