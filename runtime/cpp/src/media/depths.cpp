// Depths as files; as denseport.runtime.media.depth_map and .pipeline.depth.
#include <cmath>
#include <cstring>

#include <nlohmann/json.hpp>
#include <opencv2/core.hpp>

#include "denseport/denseport.hpp"
#include "media/codecs.hpp"
#include "media/png.hpp"
#include "system/files.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using Bytes = std::vector<unsigned char>;

constexpr double LARGEST = 65535;                  // value of a pixel of 16 bits
constexpr double MILLIMETRES = 1000, KITTI = 256;  // values a metre: of NYUv2's files, and of KITTI's
constexpr std::size_t ALIGNMENT = 64;              // bytes, of the numbers in a .npy file

std::string short_number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return text;
}

// How a depth becomes a value: (depth - offset) * scale.
struct Scaling {
    double scale, offset;
};

Scaling scaling_of(const Depth& found, std::optional<double> asked, double least, double most) {
    if (asked) return {*asked, 0};
    if (found.unit == "metres") {  // a resize may exceed the limit
        const bool is_near = found.largest && 1.2 * *found.largest * MILLIMETRES <= LARGEST;
        return {is_near ? MILLIMETRES : KITTI, 0};
    }
    return {most > least ? LARGEST / (most - least) : 1.0, least};
}

Bytes png_of(const std::string& name, const Depth& found, std::optional<double> asked) {
    if (asked && !(std::isfinite(*asked) && *asked > 0))
        throw OutputError(name + ": the scale " + number(*asked) + " of a depth PNG is not above 0",
                          "Give values a unit, such as 1000.");
    cv::Mat depth = found.depth;
    if (found.unit == "metres") depth = cv::max(depth, 0);  // a bicubic resize may fall below
    double least = 0, most = 0;
    cv::minMaxLoc(depth, &least, &most);
    const Scaling by = scaling_of(found, asked, least, most);
    const auto value_of = [&](double each) { return std::nearbyint((each - by.offset) * by.scale); };
    if (!(cv::checkRange(depth) && value_of(least) >= 0 && value_of(most) <= LARGEST))
        throw OutputError(name + ": a PNG of 16 bits holds 0 to " + short_number(LARGEST / by.scale) + " " +
                              found.unit + " at the scale " + short_number(by.scale) + ", and the depths go from " +
                              short_number(least) + " to " + short_number(most),
                          "Give another scale, or write .npy.");
    cv::Mat values(depth.size(), CV_16UC1);
    for (int y = 0; y < depth.rows; ++y)
        for (int x = 0; x < depth.cols; ++x)
            values.at<std::uint16_t>(y, x) = std::uint16_t(value_of(double(depth.at<float>(y, x))));
    Bytes grey;
    codecs().encode_png(values, grey, {});
    const nlohmann::ordered_json said = {{"unit", found.unit},
                                         {"larger_is", found.larger_is},
                                         {"scale", by.scale},
                                         {"offset", by.offset},
                                         {"formula", "value / scale + offset"}};
    const std::string text = std::string("Depth") + '\0' + said.dump();
    Bytes png(grey.begin(), grey.begin() + PNG_SIGNATURE + PNG_HEADER);
    add_chunk(png, "tEXt", {text.begin(), text.end()});
    png.insert(png.end(), grey.begin() + PNG_SIGNATURE + PNG_HEADER, grey.end());
    return png;
}

// Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0.
Bytes npy_of(const cv::Mat& depth) {
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(depth.rows) + ", " +
                         std::to_string(depth.cols) + "), }";
    const std::string begin("\x93NUMPY\x01\x00", 8);
    while ((begin.size() + 2 + header.size() + 1) % ALIGNMENT) header += ' ';
    header += '\n';
    Bytes file(begin.begin(), begin.end());
    file.push_back(static_cast<unsigned char>(header.size()));  // two bytes, the smallest first; it has less than 256
    file.push_back(0);
    file.insert(file.end(), header.begin(), header.end());
    for (int y = 0; y < depth.rows; ++y) {
        const auto* row = depth.ptr(y);
        file.insert(file.end(), row, row + std::size_t(depth.cols) * sizeof(float));
    }
    return file;
}

}  // namespace

void save_depth(const std::filesystem::path& file, const Depth& found, std::optional<double> scale) {
    const std::string ending = file.extension().string();
    const bool is_png = ending == ".png" || ending == ".PNG";
    if (!is_png && scale) throw OutputError(file.string() + ": a scale applies to .png files", "One is .png, .npy.");
    if (!is_png && ending != ".npy")
        throw OutputError(file.string() + ": no depth is such a file", "One is .png, .npy.");
    if (found.depth.empty() || found.depth.type() != CV_32FC1)
        throw OutputError(file.string() + ": a depth is of type CV_32FC1", "Give the result of a DepthEstimator.");
    try {
        write_atomic(file, is_png ? png_of(file.string(), found, scale) : npy_of(found.depth));
    } catch (const cv::Exception& error) {
        throw OutputError(file.string() + ": cannot be encoded: " + error.err, "Write .npy.");
    }
}

}  // namespace denseport
