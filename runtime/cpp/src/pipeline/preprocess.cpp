#include "pipeline/preprocess.hpp"

#include <map>

#include <opencv2/imgproc.hpp>

#include "pipeline/pillow_resize.hpp"

namespace denseport {
namespace {

const std::map<std::string, int> INTERPOLATIONS = {
    {"nearest", cv::INTER_NEAREST}, {"bilinear", cv::INTER_LINEAR},  {"bicubic", cv::INTER_CUBIC},
    {"area", cv::INTER_AREA},       {"lanczos", cv::INTER_LANCZOS4},
};
const std::map<std::string, int> BORDERS = {
    {"constant", cv::BORDER_CONSTANT},
    {"edge", cv::BORDER_REPLICATE},
    {"reflect", cv::BORDER_REFLECT_101},
    {"symmetric", cv::BORDER_REFLECT},
};

cv::Mat mirrored(const cv::Mat& image) {
    cv::Mat found;
    cv::flip(image, found, 1);
    return found;
}

cv::Mat without_colours(const cv::Mat& image) {
    cv::Mat grey, found;
    cv::cvtColor(image, grey, cv::COLOR_BGR2GRAY);
    cv::cvtColor(grey, found, cv::COLOR_GRAY2BGR);
    return found;
}

cv::Mat padded(const cv::Mat& image, const Size& size, const Pad& pad) {
    const Size before = pad.before({image.rows, image.cols});
    const int top = int(before.height), left = int(before.width);
    const int below = int(size.height) - image.rows - top, right = int(size.width) - image.cols - left;
    if (image.rows == size.height && image.cols == size.width) return image;
    cv::Mat found;
    cv::copyMakeBorder(image, found, top, below, left, right, BORDERS.at(pad.mode),
                       cv::Scalar(pad.value[0], pad.value[1], pad.value[2]));
    return found;
}

cv::Mat resized(const cv::Mat& image, const Size& size, const Sampling& sampling) {
    if (image.rows == size.height && image.cols == size.width) return image;
    if (sampling.library == "pillow") return pillow_resize(image, size, sampling.interpolation);
    cv::Mat found;
    cv::resize(image, found, cv::Size(int(size.width), int(size.height)), 0, 0,
               INTERPOLATIONS.at(sampling.interpolation));
    return found;
}

// A table of the 256 grey levels gives the same bits as the arithmetic.
std::array<float, 256> levels(double mean, double std) {
    std::array<float, 256> table{};
    for (int level = 0; level < 256; ++level) table[std::size_t(level)] = (float(level) - float(mean)) / float(std);
    return table;
}

}  // namespace

cv::Mat fit_image(const cv::Mat& image, const Steps& steps, bool flip) {
    const Load load = loading(steps);
    cv::Mat fitted = image;
    if (load.grey || normalisation(steps).mean.size() == 1) fitted = without_colours(fitted);
    if (load.float32) fitted.convertTo(fitted, CV_32F);
    for (const Step& step : size_steps(steps)) {
        const Size size = output_size({fitted.rows, fitted.cols}, step);
        if (const Pad* pad = std::get_if<Pad>(&step)) {
            if (flip) fitted = mirrored(fitted);  // before the first padding
            flip = false;
            fitted = padded(fitted, size, *pad);
        } else {
            fitted = resized(fitted, size, *sampling_of(step));
        }
    }
    return flip ? mirrored(fitted) : fitted;
}

void normalise(const cv::Mat& image, const Steps& steps, long long top, long long left, Tensor& out) {
    const Normalise& step = normalisation(steps);
    const auto height = std::size_t(out.shape[2]), width = std::size_t(out.shape[3]);
    for (std::size_t c = 0; c < step.mean.size(); ++c) {
        const std::size_t from = step.bgr_to_rgb ? 2 - c : c;
        const auto table = levels(step.mean[c], step.std[c]);
        const auto mean = float(step.mean[c]), deviation = float(step.std[c]);
        for (int y = 0; y < image.rows; ++y) {
            float* row = &out.values[(c * height + std::size_t(top + y)) * width + std::size_t(left)];
            if (image.depth() == CV_8U) {
                const auto* pixels = image.ptr<std::uint8_t>(y) + from;
                for (int x = 0; x < image.cols; ++x) row[x] = table[pixels[3 * x]];
            } else {
                const auto* pixels = image.ptr<float>(y) + from;
                for (int x = 0; x < image.cols; ++x) row[x] = (pixels[3 * x] - mean) / deviation;
            }
        }
    }
}

}  // namespace denseport
