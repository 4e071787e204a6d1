#include "bundle/protocol.hpp"

#include <algorithm>
#include <regex>

#include "system/text.hpp"

namespace denseport {
namespace {

constexpr Pair SLIDE_CROP = {512, 512}, SLIDE_STRIDE = {341, 341};  // upstream's configurations for this crop size
constexpr double RATIOS[] = {0.5, 0.75, 1.0, 1.25, 1.5, 1.75};      // of multi-scale testing, in every published one

Inference sliding(const Inference& own) {
    return own.mode == "slide" ? own : Inference{"slide", SLIDE_CROP, SLIDE_STRIDE};
}

// 0.x applies the ratios to the test scale, as the published figures did; 1.x to the image, as its tta_pipeline.
Augmentation multi_scale(const Steps& steps, bool of_image) {
    Step own = resizing(steps).value_or(ResizeBy{{1.0, 1.0}, false, true, {}});
    if (of_image) own = ResizeBy{{1.0, 1.0}, true, false, *sampling_of(own)};
    Augmentation found;
    for (const double ratio : RATIOS) found.scales.push_back(scaled(own, ratio));
    found.flip = true;
    return found;
}

// "512:341" or "1024x512".
std::optional<Pair> two_numbers(const std::string& text, const std::string& pattern) {
    std::smatch found;
    if (text.size() > 32 || !std::regex_match(text, found, std::regex(pattern))) return std::nullopt;
    return Pair{std::stoll(found[1]), std::stoll(found[2])};
}

}  // namespace

Protocol parse_protocol(const std::string& text, const Manifest& manifest) {
    Protocol found{text, manifest.preprocess, manifest.inference, std::nullopt, manifest.input};
    if (text == "reference") {
        found.augmentation = manifest.augmentation;
        return found;
    }
    if (const std::string word = text.substr(0, text.find(':'));
        manifest.task == "depth" && (word == "ms-flip" || word == "slide" || word == "native"))
        throw InputError("the protocol " + text + " is of segmentation: it averages probabilities, or joins windows",
                         "Give reference, or fixed:WIDTHxHEIGHT.");
    if (text == "ms-flip" || text == "ms-flip:0.x" || text == "ms-flip:1.x") {
        found.augmentation = multi_scale(found.preprocess, text == "ms-flip:1.x");
        return found;
    }
    if (text == "slide" || text == "native") {
        found.inference = sliding(manifest.inference);
        if (text == "native") found.preprocess = without_resize(found.preprocess);
        return found;
    }
    if (const auto sides = two_numbers(text, "(?:slide|native):(\\d{1,5}):(\\d{1,5})")) {
        const auto [crop, stride] = *sides;
        if (crop >= manifest.patch_size && 1 <= stride && stride <= crop && crop <= LARGEST_SIDE) {
            found.inference = {"slide", Pair{crop, crop}, Pair{stride, stride}};
            if (text[0] == 'n') found.preprocess = without_resize(found.preprocess);
            return found;
        }
    }
    if (const auto size = two_numbers(text, "fixed:(\\d{1,5})x(\\d{1,5})")) {
        const long long low = std::min((*size)[0], (*size)[1]), high = std::max((*size)[0], (*size)[1]);
        if (manifest.patch_size <= low && high <= LARGEST_SIDE) {
            found.preprocess = of_one_size(manifest.preprocess, *size);
            found.inference = {};
            return found;
        }
    }
    throw InputError(
        "no protocol " + in_quotes(text) + " for a network with patches of " + shown(manifest.patch_size) + " pixels",
        "Give reference, ms-flip, ms-flip:1.x, slide, slide:CROP:STRIDE, native, native:CROP:STRIDE or "
        "fixed:WIDTHxHEIGHT.");
}

}  // namespace denseport
