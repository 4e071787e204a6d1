#include "pipeline/pillow_resize.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

namespace denseport {
namespace {

constexpr int PRECISION = 22;  // bits behind the point of a weight: a sum of them with levels stays below 2^31
constexpr double PI = 3.14159265358979323846;

double sinc(double x) { return x == 0 ? 1.0 : std::sin(PI * x) / (PI * x); }

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear(double x) { return std::max(1.0 - std::abs(x), 0.0); }

// Its two numbers are rounded to float in Pillow.
double hamming(double x) {
    return std::abs(x) < 1.0 ? sinc(x) * (double(0.54F) + double(0.46F) * std::cos(x * PI)) : 0.0;
}

// Keys' with a = -0.5.
double bicubic(double signed_x) {
    const double x = std::abs(signed_x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

// A weight for each distance, in pixels of the smaller of the two images; beyond the support it is 0.
struct Filter {
    double support;
    double (*weight)(double);
};

const std::map<std::string, Filter> FILTERS = {
    {"box", {0.5, box}},         {"bilinear", {1.0, bilinear}}, {"hamming", {1.0, hamming}},
    {"bicubic", {2.0, bicubic}}, {"lanczos", {3.0, lanczos}},
};

// What an output along an axis is made of: the inputs from the first on, and their weights in fixed point.
struct Taps {
    int first;
    std::vector<int> weights;
};

Taps taps_of(int output, int n_in, double scale, const Filter& filter) {
    const double stretch = std::max(scale, 1.0), support = filter.support * stretch;
    const double centre = (output + 0.5) * scale;
    const int first = int(std::max(centre - support + 0.5, 0.0));
    const int stop = std::min(int(centre + support + 0.5), n_in);
    std::vector<double> weights;
    double total = 0;
    for (int i = first; i < stop; ++i) {
        weights.push_back(filter.weight((i - centre + 0.5) * (1.0 / stretch)));
        total += weights.back();
    }
    Taps found{first, {}};
    for (const double weight : weights) {
        const double fixed = weight / (total == 0 ? 1.0 : total) * (1 << PRECISION);
        found.weights.push_back(int(fixed + std::copysign(0.5, fixed)));
    }
    return found;
}

std::vector<Taps> axis(int n_in, int n_out, const std::string& interpolation) {
    std::vector<Taps> found;
    const double scale = double(n_in) / double(n_out);
    for (int i = 0; i < n_out; ++i) found.push_back(taps_of(i, n_in, scale, FILTERS.at(interpolation)));
    return found;
}

std::uint8_t level(int sum) { return cv::saturate_cast<std::uint8_t>(sum >> PRECISION); }

constexpr int HALF = 1 << (PRECISION - 1);

cv::Mat resized_width(const cv::Mat& image, int width, const std::string& interpolation) {
    cv::Mat found(image.rows, width, CV_8UC3);
    const std::vector<Taps> columns = axis(image.cols, width, interpolation);
    for (int y = 0; y < image.rows; ++y) {
        std::uint8_t* out = found.ptr(y);
        for (const Taps& taps : columns) {
            const std::uint8_t* in = image.ptr(y) + 3 * std::ptrdiff_t(taps.first);
            int blue = HALF, green = HALF, red = HALF;
            for (const int weight : taps.weights) {
                blue += weight * in[0];
                green += weight * in[1];
                red += weight * in[2];
                in += 3;
            }
            *out++ = level(blue);
            *out++ = level(green);
            *out++ = level(red);
        }
    }
    return found;
}

cv::Mat resized_height(const cv::Mat& image, int height, const std::string& interpolation) {
    cv::Mat found(height, image.cols, CV_8UC3);
    const std::vector<Taps> rows = axis(image.rows, height, interpolation);
    const auto bytes = std::size_t(image.cols) * 3;
    std::vector<int> sums(bytes);
    for (int y = 0; y < height; ++y) {
        const Taps& taps = rows[std::size_t(y)];
        std::fill(sums.begin(), sums.end(), HALF);
        for (std::size_t t = 0; t < taps.weights.size(); ++t) {
            const std::uint8_t* in = image.ptr(taps.first + int(t));
            for (std::size_t x = 0; x < bytes; ++x) sums[x] += taps.weights[t] * in[x];
        }
        std::transform(sums.begin(), sums.end(), found.ptr(y), level);
    }
    return found;
}

// The pixel of each output. Pillow adds up the steps, and so the rounding of each.
std::vector<int> nearest(int n_in, int n_out) {
    const double step = double(n_in) / double(n_out);
    std::vector<int> found;
    double at = step * 0.5;
    for (int i = 0; i < n_out; ++i, at += step) found.push_back(int(at));
    return found;
}

cv::Mat resized_nearest(const cv::Mat& image, const Size& size) {
    cv::Mat found(int(size.height), int(size.width), CV_8UC3);
    const std::vector<int> rows = nearest(image.rows, found.rows), columns = nearest(image.cols, found.cols);
    for (int y = 0; y < found.rows; ++y) {
        const auto* in = image.ptr<cv::Vec3b>(rows[std::size_t(y)]);
        auto* out = found.ptr<cv::Vec3b>(y);
        for (int x = 0; x < found.cols; ++x) out[x] = in[columns[std::size_t(x)]];
    }
    return found;
}

}  // namespace

cv::Mat pillow_resize(const cv::Mat& image, const Size& size, const std::string& interpolation) {
    if (interpolation == "nearest") return resized_nearest(image, size);
    cv::Mat found = image;
    if (found.cols != size.width) found = resized_width(found, int(size.width), interpolation);
    return found.rows == size.height ? found : resized_height(found, int(size.height), interpolation);
}

}  // namespace denseport
