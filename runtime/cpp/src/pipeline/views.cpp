#include "pipeline/views.hpp"

#include <algorithm>

#include "pipeline/preprocess.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

Step as_step(const Pad& pad) { return pad; }

// How an image of a size is seen after some steps.
//
// mmsegmentation 1.x resizes the logits of a whole image to the size that the last pad or resize to a multiple left,
// even if another resize came behind it. 0.x, whose pads are cut off, does not.
View view_of(const Size& size, const Steps& steps, bool flip) {
    View view{steps, size, {}, {}, flip};
    std::optional<Size> stretched;
    Steps all = size_steps(steps);
    for (const Pad& pad : paddings(steps)) all.push_back(as_step(pad));
    for (const Step& step : all) {
        const Size before = view.size;
        view.size = output_size(before, step);
        const Pad* pad = std::get_if<Pad>(&step);
        if (pad && pad->crop) {
            stretched.reset();
            view.cut.height += view.size.height - before.height;
            view.cut.width += view.size.width - before.width;
        } else {
            if (pad || std::holds_alternative<ResizeToMultiple>(step)) stretched = view.size;
            view.cut = {};
        }
    }
    view.stretched = stretched.value_or(view.size);
    return view;
}

std::string by(const Size& size) { return shown(size.width) + " x " + shown(size.height); }

std::string taken(const std::array<std::optional<long long>, 4>& shape) {
    std::vector<std::string> sizes;
    for (const auto& size : shape) sizes.push_back(size ? shown(*size) : "None");
    return "(" + joined(sizes) + ")";
}

void check(const View& view, const Size& size, const Protocol& protocol, long long patch_size) {
    const std::string reaches = "an image of " + by(size) + " pixels reaches the network as ";
    if (!protocol.augmentation && std::min(view.size.height, view.size.width) < patch_size)
        throw ImageError(reaches + by(view.size) + ", less than one patch of " + by({patch_size, patch_size}),
                         "Crop or tile such a narrow image, or export with a larger --scale.");
    // The first window begins at 0, and all are of one size.
    const Windows spans = windows(view.size, protocol.inference);
    const auto& allowed = protocol.input.shape;
    const std::array<long long, 4> shape = {1, *allowed[1], spans.rows[0].stop, spans.cols[0].stop};
    for (int i = 0; i < 4; ++i)
        if (allowed[i] && *allowed[i] != shape[i])
            throw ImageError(reaches + listed(shape) + "; it takes " + taken(allowed),
                             "Give such a size: --protocol fixed:" + (allowed[3] ? shown(*allowed[3]) : "WIDTH") + "x" +
                                 (allowed[2] ? shown(*allowed[2]) : "HEIGHT"));
    if (shape[2] % protocol.input.divisor || shape[3] % protocol.input.divisor)
        throw ImageError(
            reaches + by({shape[2], shape[3]}) + "; it takes multiples of " + shown(protocol.input.divisor),
            "Give a protocol of such a size, or the bundle's own: --protocol reference.");
}

// The rows and columns, of what the network sees, that the image takes up (the first), and the same after each pad.
struct Frame {
    Span rows, cols;
    Pad pad;
};

std::vector<Frame> frames(Size size, const std::vector<Pad>& pads) {
    std::vector<Frame> found = {{{0, size.height}, {0, size.width}, {}}};
    for (const Pad& pad : pads) {
        const Size before = pad.before(size);
        size = output_size(size, pad);
        for (Frame& frame : found) {
            frame.rows = {frame.rows.start + before.height, frame.rows.stop + before.height};
            frame.cols = {frame.cols.start + before.width, frame.cols.stop + before.width};
        }
        found.push_back({{0, size.height}, {0, size.width}, pad});
    }
    return found;
}

// Where a part lies in a whole, counted from its start; what is beyond it is left out.
Span inside(const Span& part, const Span& whole) {
    return {std::max(part.start - whole.start, 0LL), std::max(std::min(part.stop, whole.stop) - whole.start, 0LL)};
}

// The last window is moved back to end with the image.
std::vector<Span> window_starts(long long length, long long crop, long long stride) {
    const long long count = std::max(length - crop + stride - 1, 0LL) / stride + 1;
    std::vector<Span> found;
    for (long long i = 0; i < count; ++i) {
        const long long stop = std::min(i * stride + crop, length);
        found.push_back({std::max(stop - crop, 0LL), stop});
    }
    return found;
}

}  // namespace

std::vector<View> protocol_views(const Size& size, const Protocol& protocol, long long patch_size) {
    std::vector<View> views;
    if (!protocol.augmentation) {
        views.push_back(view_of(size, protocol.preprocess, false));
    } else {
        for (const Step& scale : protocol.augmentation->scales)
            for (int flip = 0; flip <= int(protocol.augmentation->flip); ++flip)
                views.push_back(view_of(size, with_resize(protocol.preprocess, scale), flip == 1));
    }
    for (const View& view : views) check(view, size, protocol, patch_size);
    return views;
}

Windows windows(const Size& size, const Inference& inference) {
    if (!inference.crop || !inference.stride) return {{{0, size.height}}, {{0, size.width}}};
    const auto [height, width] = *inference.crop;
    const auto [down, right] = *inference.stride;
    return {window_starts(size.height, height, down), window_starts(size.width, width, right)};
}

cv::Mat show(const cv::Mat& image, const View& view) { return fit_image(image, view.steps, view.flip); }

Tensor window_input(const cv::Mat& shown, const View& view, const Span& rows, const Span& cols) {
    const auto channels = long(normalisation(view.steps).mean.size());
    Tensor input{{1, channels, rows.length(), cols.length()}, {}};
    input.values.resize(std::size_t(channels * rows.length() * cols.length()));
    const std::vector<Frame> all = frames({shown.rows, shown.cols}, paddings(view.steps));
    for (std::size_t i = all.size() - 1; i > 0; --i) {  // from the outermost pad inwards, each with its value
        const Span down = inside(all[i].rows, rows), across = inside(all[i].cols, cols);
        for (long channel = 0; channel < channels; ++channel)
            for (long long y = down.start; y < down.stop; ++y) {
                float* row = &input.values[std::size_t((channel * rows.length() + y) * cols.length())];
                std::fill(row + across.start, row + std::max(across.start, across.stop),
                          float(all[i].pad.value[std::size_t(channel)]));
            }
    }
    const Span of_rows = inside(rows, all[0].rows), of_cols = inside(cols, all[0].cols);
    if (of_rows.start >= of_rows.stop || of_cols.start >= of_cols.stop) return input;
    const cv::Mat part =
        shown(cv::Range(int(of_rows.start), int(of_rows.stop)), cv::Range(int(of_cols.start), int(of_cols.stop)));
    normalise(part, view.steps, inside(all[0].rows, rows).start, inside(all[0].cols, cols).start, input);
    return input;
}

}  // namespace denseport
