#include "media/pillow.hpp"

#include <algorithm>
#include <cstring>

namespace denseport {
namespace {

using Bytes = std::vector<unsigned char>;

bool holds(const Bytes& data, const std::string& words) {
    return std::search(data.begin(), data.end(), words.begin(), words.end()) != data.end();
}

std::string why_not_png(const Bytes& data, bool orientation) {
    if (data.size() < 26) return "it has no header";
    const int bits = data[24], colours = data[25];  // of the first chunk
    if (bits != 8) return "it is a PNG of " + std::to_string(bits) + " bits";
    if (colours == 4) return "it is a grey PNG with transparency";
    if (orientation && (holds(data, "eXIf") || holds(data, "Raw profile type exif")))
        return "it is a PNG with EXIF data";
    return "";
}

std::string why_not_jpeg(const Bytes& data) {
    std::size_t at = 2;
    while (at + 10 <= data.size() && data[at] == 0xFF) {
        const int marker = data[at + 1];
        if (marker == 0xDA) break;
        if (marker == 0xFF) {  // fills
            ++at;
            continue;
        }
        if (marker >= 0xC0 && marker <= 0xC2) {  // the frame's header, of the processes that libjpeg decodes
            const int bits = data[at + 4], channels = data[at + 9];
            if (bits != 8) return "it is a JPEG of " + std::to_string(bits) + " bits";
            return channels == 1 || channels == 3 ? "" : "it is a JPEG of " + std::to_string(channels) + " channels";
        }
        at += 2 + std::size_t(data[at + 2] << 8 | data[at + 3]);
    }
    return "it is a JPEG of an unusual process";
}

}  // namespace

std::string why_not_as_pillow(const Bytes& data, bool orientation) {
    std::string reason = "it is neither PNG nor JPEG";
    if (data.size() > 8 && std::memcmp(data.data(), "\x89PNG", 4) == 0) reason = why_not_png(data, orientation);
    if (data.size() > 8 && std::memcmp(data.data(), "\xff\xd8\xff", 3) == 0) reason = why_not_jpeg(data);
    if (reason.empty() && orientation && holds(data, "tiff:Orientation")) return "its XMP data turns it";
    return reason;
}

cv::Mat grey_of_pillow(const cv::Mat& image) {
    cv::Mat found(image.size(), CV_8UC3);
    for (int y = 0; y < image.rows; ++y)
        for (int x = 0; x < image.cols; ++x) {
            const auto& bgr = image.at<cv::Vec3b>(y, x);
            const int sum = 19595 * bgr[2] + 38470 * bgr[1] + 7471 * bgr[0];  // of 65536
            found.at<cv::Vec3b>(y, x) = cv::Vec3b::all(std::uint8_t((sum + 32768) >> 16));
        }
    return found;
}

}  // namespace denseport
