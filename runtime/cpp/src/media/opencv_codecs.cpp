#include <opencv2/imgcodecs.hpp>

#include "media/codecs.hpp"

namespace {

cv::Mat decode(const std::vector<unsigned char>& data, int flags) { return cv::imdecode(data, flags); }

bool encode_png(const cv::Mat& image, std::vector<unsigned char>& data, const std::vector<int>& parameters) {
    return cv::imencode(".png", image, data, parameters);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const denseport::Codecs* denseport_codecs() {
    static const denseport::Codecs found{decode, encode_png};
    return &found;
}
