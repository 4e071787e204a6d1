// A manifest that is read, and views and tiles of small images under each protocol that it allows.
#include <cstdint>
#include <string>

#include "bundle/protocol.hpp"
#include "pipeline/sliding.hpp"

using namespace denseport;

namespace {

constexpr long long LARGEST = 200000;  // pixels of a view that are resized here, for speed

// The mask of one view, with logits of one value a class.
void decide(const Manifest& manifest, const Protocol& protocol, const View& view, const Size& size) {
    const bool whole = protocol.inference.mode == "whole";
    const Placement place{whole ? view.stretched : view.size, size, view.cut, view.flip, manifest.align_corners};
    const Windows spans = windows(view.size, protocol.inference);
    const auto count = spans.rows.size() * spans.cols.size();
    if (place.resized.height * place.resized.width > LARGEST || count > 64 || manifest.classes.size() > 64) return;
    const cv::Mat shown = show(cv::Mat::zeros(int(size.height), int(size.width), CV_8UC3), view);
    const Windows placed = whole ? Windows{{{0, place.resized.height}}, {{0, place.resized.width}}} : spans;
    Sliding sliding(placed, place, {false, manifest.threshold}, 1);
    const auto classes = static_cast<long long>(manifest.classes.size());
    for (std::size_t r = 0; r < spans.rows.size(); ++r)
        for (std::size_t c = 0; c < spans.cols.size(); ++c) {
            window_input(shown, view, spans.rows[r], spans.cols[c]);
            Tensor logits{{1, classes, 3, 4}, {}};
            for (long long k = 0; k < 12 * classes; ++k) logits.values.push_back(float(k % 7));
            sliding.take(int(r), int(c), std::move(logits));
        }
}

// The network's input of one view, and the way back of a depth of 3 x 4.
void estimate(const View& view, const Size& size) {
    if (view.size.height * view.size.width > LARGEST) return;
    const cv::Mat shown = show(cv::Mat::zeros(int(size.height), int(size.width), CV_8UC3), view);
    window_input(shown, view, {0, view.size.height}, {0, view.size.width});
    for (const bool corners : {false, true}) {
        ResampleMatrix::cubic(4, size.width, corners).apply(std::vector<float>(12, 1.0F));
        const ResampleMatrix cut = ResampleMatrix::linear(view.size.height - view.cut.height, size.height, corners);
        cut.widened(view.size.height).after(ResampleMatrix::cubic(3, view.size.height, corners));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const Manifest manifest = Manifest::from_json({reinterpret_cast<const char*>(data), size}, "manifest.json");
        for (const char* name : {"reference", "ms-flip", "ms-flip:1.x", "slide", "native:64:42", "fixed:64x48"}) {
            try {
                const Protocol protocol = parse_protocol(name, manifest);
                const Size image{30, 50};
                for (const View& view : protocol_views(image, protocol, manifest.patch_size))
                    manifest.depth ? estimate(view, image) : decide(manifest, protocol, view, image);
            } catch (const Error&) {
            }
        }
    } catch (const Error&) {
    }
    return 0;
}
