#include "media/images.hpp"

#include <algorithm>
#include <cstring>
#include <system_error>

#include <opencv2/core/version.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "media/codecs.hpp"
#include "media/pillow.hpp"
#include "system/files.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using Bytes = std::vector<unsigned char>;

constexpr unsigned char PNG[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
const std::string COPY_AGAIN = "Copy or download it again.", CONVERT = "Convert it to PNG or JPEG.";

bool begins_with(const Bytes& data, const void* what, std::size_t size, std::size_t at = 0) {
    return data.size() >= at + size && std::memcmp(data.data() + at, what, size) == 0;
}

std::size_t big_endian(const Bytes& data, std::size_t at, int bytes) {
    std::size_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | data[at + std::size_t(i)];
    return value;
}

// By the chunks, not only the last: OpenCV makes room for as many bytes as a chunk claims, up to 4 GiB, and where there
// are no pixels it takes what follows the end for chunks.
bool is_png_cut_short(const Bytes& data) {
    bool has_pixels = false;
    for (std::size_t at = 8; at + 12 <= data.size();) {
        const std::size_t length = big_endian(data, at, 4);
        if (begins_with(data, "IEND", 4, at + 4)) return length > 0 || !has_pixels;
        has_pixels |= begins_with(data, "IDAT", 4, at + 4);
        at += 12 + length;
    }
    return true;
}

// Segments are skipped by their length: the EXIF thumbnail has an end marker of its own.
bool is_jpeg_cut_short(const Bytes& data) {
    std::size_t at = 2;
    while (at + 4 <= data.size() && data[at] == 0xFF && data[at + 1] != 0xDA)
        at += data[at + 1] == 0xFF ? 1 : 2 + big_endian(data, at + 2, 2);
    const unsigned char end[] = {0xFF, 0xD9};
    return at >= data.size() || std::search(data.begin() + std::ptrdiff_t(at), data.end(), end, end + 2) == data.end();
}

ImageError error_of(const cv::Exception& error, const std::string& name) {
    if (std::strstr(error.what(), "CV_IO_MAX_IMAGE"))
        return {name + ": the image has more pixels than OpenCV accepts",
                "Scale it down, or raise the limit: OPENCV_IO_MAX_IMAGE_PIXELS=<pixels> in the environment."};
    return {name + ": cannot be decoded: " + error.err, CONVERT};
}

}  // namespace

bool is_cut_short(const Bytes& data) {
    if (begins_with(data, PNG, sizeof PNG)) return is_png_cut_short(data);
    if (begins_with(data, "RIFF", 4) && begins_with(data, "WEBP", 4, 8)) {
        const std::size_t size = data[4] | data[5] << 8 | data[6] << 16 | std::size_t(data[7]) << 24;
        return size + 8 > data.size();
    }
    return begins_with(data, "\xff\xd8\xff", 3) && is_jpeg_cut_short(data);
}

cv::Mat decode_image(const Bytes& data, const std::string& name, const Load& load) {
    if (data.empty()) throw ImageError(name + ": the file is empty", COPY_AGAIN);
    // OpenCV 4 fills the missing part of a JPEG with grey and reports success.
    if (is_cut_short(data))
        throw ImageError(
            name + ": the image is cut short" + (begins_with(data, PNG, sizeof PNG) ? ", or has no pixels" : ""),
            COPY_AGAIN);
    const bool of_pillow = load.library == "pillow";
    if (const std::string reason = of_pillow ? why_not_as_pillow(data, load.orientation) : ""; !reason.empty())
        throw ImageError(name + ": the bundle's images are decoded by Pillow, which may differ from OpenCV: " + reason,
                         "Convert it to a PNG of 8 bits, or decode it yourself and give the array.");
    const int flags = (load.grey && !of_pillow ? cv::IMREAD_GRAYSCALE : cv::IMREAD_COLOR) |
                      (load.orientation ? 0 : cv::IMREAD_IGNORE_ORIENTATION);
    cv::Mat image;
    try {
        image = codecs().decode(data, flags);
    } catch (const cv::Exception& error) {
        if (is_out_of_memory(error.what()))
            throw MachineError(name + ": memory ran out when it was decoded", "Scale it down, or free some.");
        throw error_of(error, name);
    }
    if (image.empty())
        throw ImageError(name + ": damaged, or not an image that OpenCV " + CV_VERSION + " can decode", CONVERT);
    if (load.grey && of_pillow) return grey_of_pillow(image);
    if (load.grey) cv::cvtColor(image, image, cv::COLOR_GRAY2BGR);
    return image;
}

cv::Mat read_image(const std::filesystem::path& file, const Load& load) {
    const std::string name = file.string();
    try {
        return decode_image(read_file(file), name, load);
    } catch (const std::system_error& error) {
        if (error.code() == std::errc::no_such_file_or_directory)
            throw ImageError(name + ": there is no such file", "Check the path.");
        if (error.code() == std::errc::is_a_directory)
            throw ImageError(name + ": this is a folder, not a file", "Name a file in it.");
        throw ImageError(name + ": cannot be read: " + error.code().message(), "Check its permissions.");
    }
}

}  // namespace denseport
