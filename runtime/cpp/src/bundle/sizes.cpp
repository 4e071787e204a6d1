// Which size comes out of a step.
#include "bundle/preprocessing.hpp"

#include <algorithm>
#include <cmath>

#include "system/text.hpp"

namespace denseport {
namespace {

constexpr double LARGEST = 1e15;  // pixels: what is larger is refused anyway, and has no place in an integer

// Rounded down, as Python's int() does for positive numbers.
long long whole(double value) { return static_cast<long long>(std::min(value, LARGEST)); }

long long multiple(long long side, long long divisor) { return (side + divisor - 1) / divisor * divisor; }

// As large as fits: the longer side into the larger limit, the shorter side into the smaller one; half up, as mmcv.
Size fit(const Size& size, const Pair& limits) {
    const double factor = std::min(double(std::max(limits[0], limits[1])) / double(std::max(size.height, size.width)),
                                   double(std::min(limits[0], limits[1])) / double(std::min(size.height, size.width)));
    return {std::max(1LL, whole(double(size.height) * factor + 0.5)),
            std::max(1LL, whole(double(size.width) * factor + 0.5))};
}

Size output(const Load&, const Size& size) { return size; }

Size output(const Normalise&, const Size& size) { return size; }

Size output(const Resize& step, const Size& size) {
    return step.keep_ratio ? fit(size, step.size) : Size{step.size[1], step.size[0]};
}

Size output(const ResizeBy& step, const Size& size) {
    const double half = step.round_down ? 0.0 : 0.5;
    const Pair wanted = {whole(double(size.width) * step.factor[0] + half),
                         whole(double(size.height) * step.factor[1] + half)};
    return step.keep_ratio ? fit(size, wanted) : Size{std::max(1LL, wanted[1]), std::max(1LL, wanted[0])};
}

Size output(const ResizeShortestEdge& step, const Size& size) {
    const long long shorter = std::min(size.height, size.width);
    const double scale = double(step.shortest) / double(shorter);
    double height = size.height == shorter ? double(step.shortest) : scale * double(size.height);
    double width = size.width == shorter ? double(step.shortest) : scale * double(size.width);
    if (std::max(height, width) > double(step.longest)) {
        const double limit = double(step.longest) / std::max(height, width);
        height *= limit;
        width *= limit;
    }
    return fit(size, {whole(width + 0.5), whole(height + 0.5)});
}

Size output(const ResizeToMultiple& step, const Size& size) {
    return {multiple(size.height, step.divisor[1]), multiple(size.width, step.divisor[0])};
}

// The multiple of a divisor that is nearest to a side times a factor; nearbyint rounds half to even, as Python's round.
long long rounded(const ResizeRounded& step, long long side, double factor, long long least) {
    const double units = factor * double(side) / double(step.divisor);
    const long long nearest = whole(std::nearbyint(units)) * step.divisor;
    return step.rule == "lower_bound" && nearest < least ? whole(std::ceil(units)) * step.divisor : nearest;
}

Size output(const ResizeRounded& step, const Size& size) {
    const auto [width, height] = step.size;
    double down = double(height) / double(size.height), across = double(width) / double(size.width);
    if (step.rule == "lower_bound") down = across = std::max(down, across);
    if (step.rule == "minimal") down = across = std::abs(1 - across) < std::abs(1 - down) ? across : down;
    return {rounded(step, size.height, down, height), rounded(step, size.width, across, width)};
}

Size output(const Pad& step, const Size& size) { return step.output(size); }

std::string by(const Pair& pair) { return shown(pair[0]) + " x " + shown(pair[1]); }

std::string said(const Load&) { return ""; }

std::string said(const Normalise&) { return ""; }

std::string said(const Resize& step) { return (step.keep_ratio ? "keep-ratio " : "fixed ") + by(step.size); }

std::string said(const ResizeBy& step) {
    return "by " + number(step.factor[0]) + " (width) and " + number(step.factor[1]) + " (height)";
}

std::string said(const ResizeShortestEdge& step) {
    return "shorter side " + shown(step.shortest) + ", longer at most " + shown(step.longest);
}

std::string said(const ResizeToMultiple& step) { return "up to multiples of " + by(step.divisor); }

std::string said(const ResizeRounded& step) {
    std::string rule = step.rule;
    std::replace(rule.begin(), rule.end(), '_', ' ');
    return rule + " " + by(step.size) + (step.divisor > 1 ? ", multiples of " + shown(step.divisor) : "");
}

std::string said(const Pad& step) {
    if (step.size) return "padded to " + by(*step.size);
    return step.square ? "padded to a square" : "padded to multiples of " + shown(*step.divisor);
}

Step times(const Resize& step, double ratio) {
    Resize found = step;
    for (long long& side : found.size) side = whole(double(side) * ratio);
    return found;
}

Step times(const ResizeRounded& step, double ratio) {
    ResizeRounded found = step;
    for (long long& side : found.size) side = whole(double(side) * ratio);
    return found;
}

Step times(const ResizeBy& step, double ratio) {
    ResizeBy found = step;
    for (double& factor : found.factor) factor *= ratio;
    return found;
}

Step times(const ResizeShortestEdge& step, double ratio) {
    ResizeShortestEdge found = step;
    found.shortest = whole(double(step.shortest) * ratio);
    found.longest = whole(double(step.longest) * ratio);
    return found;
}

template <class Other>
Step times(const Other& step, double) {
    return step;
}

}  // namespace

Size Pad::output(Size found) const {
    if (square) found.height = found.width = std::max(found.height, found.width);
    if (divisor) return {multiple(found.height, *divisor), multiple(found.width, *divisor)};
    const Pair wanted = size.value_or(Pair{0, 0});
    return {std::max(found.height, wanted[1]), std::max(found.width, wanted[0])};
}

Size Pad::before(const Size& from) const {
    const Size to = output(from);
    return centred ? Size{(to.height - from.height) / 2, (to.width - from.width) / 2} : Size{};
}

Size output_size(const Size& size, const Step& step) {
    const Size found = std::visit([&](const auto& each) { return output(each, size); }, step);
    if (std::min(found.height, found.width) < 1)
        throw ImageError(
            "an image of " + shown(size.width) + " x " + shown(size.height) + " would become " + shown(found.width) +
                " x " + shown(found.height) + " (" + words(step) + "), without pixels",
            "Crop or tile such a narrow image, or give a protocol with a size of its own: --protocol fixed:512x512.");
    if (std::max(found.height, found.width) > std::max<long long>({LARGEST_SIDE, size.height, size.width}))
        throw ImageError("an image of " + shown(size.width) + " x " + shown(size.height) + " would become " +
                             shown(found.width) + " x " + shown(found.height) + " (" + words(step) + "); at most " +
                             std::to_string(LARGEST_SIDE) + " pixels a side are allowed",
                         "Scale it down, or export with another --scale.");
    return found;
}

std::string words(const Step& step) {
    return std::visit([](const auto& each) { return said(each); }, step);
}

Step scaled(const Step& step, double ratio) {
    return std::visit([&](const auto& each) { return times(each, ratio); }, step);
}

}  // namespace denseport
