// A mask as a PNG; as denseport.runtime.media.images.write_mask.
#include <array>

#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>

#include "denseport/denseport.hpp"
#include "media/codecs.hpp"
#include "system/files.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using Bytes = std::vector<unsigned char>;

constexpr std::size_t SIGNATURE = 8, HEADER = 25;  // bytes: of a PNG's begin, of its first chunk
// Run lengths of the differences from the row above. 19 and 32 are IMWRITE_PNG_FILTER and its value UP, which OpenCV
// has names for since 4.12 and ignores before.
const std::vector<int> RUNS = {cv::IMWRITE_PNG_STRATEGY, cv::IMWRITE_PNG_STRATEGY_RLE, 19, 32};

std::uint32_t crc32(const Bytes& data) {
    std::uint32_t crc = 0xFFFFFFFF;
    for (const unsigned char byte : data) {
        crc ^= byte;
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return ~crc;
}

void add_number(Bytes& bytes, std::uint32_t number) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<unsigned char>(number >> shift));
}

void add_chunk(Bytes& png, const char* kind, const Bytes& body) {
    Bytes named(kind, kind + 4);
    named.insert(named.end(), body.begin(), body.end());
    add_number(png, std::uint32_t(body.size()));
    png.insert(png.end(), named.begin(), named.end());
    add_number(png, crc32(named));
}

// OpenCV cannot write an indexed PNG, but its 8-bit grey lacks the header and the palette alone. Indices beyond the
// palette are black. Source: https://www.w3.org/TR/png-3/ (chunks: section 5, PLTE: 11.2.2).
Bytes indexed(const Bytes& grey, const cv::Mat& mask, const std::vector<Class>& classes) {
    double largest = 0;
    cv::minMaxLoc(mask, nullptr, &largest);
    Bytes header, palette;
    add_number(header, std::uint32_t(mask.cols));
    add_number(header, std::uint32_t(mask.rows));
    header.insert(header.end(), {8, 3, 0, 0, 0});  // bits, colour type, the only compression and filter, not interlaced
    for (const Class& each : classes) palette.insert(palette.end(), each.colour.begin(), each.colour.end());
    palette.resize(std::max(palette.size(), 3 * (std::size_t(largest) + 1)));
    Bytes png(grey.begin(), grey.begin() + SIGNATURE);
    add_chunk(png, "IHDR", header);
    add_chunk(png, "PLTE", palette);
    png.insert(png.end(), grey.begin() + SIGNATURE + HEADER, grey.end());
    return png;
}

}  // namespace

void save_mask(const std::filesystem::path& file, const cv::Mat& mask, const std::vector<Class>& classes) {
    if (file.extension() != ".png" && file.extension() != ".PNG")
        throw OutputError(file.string() + ": a mask is a PNG, which keeps its values", "End the name in .png.");
    if (mask.empty() || (mask.type() != CV_8UC1 && mask.type() != CV_16UC1))
        throw OutputError(file.string() + ": a mask is of type CV_8UC1 or CV_16UC1",
                          "Give the mask of a Segmentation.");
    Bytes grey;
    try {
        codecs().encode_png(mask, grey, mask.depth() == CV_8U ? RUNS : std::vector<int>{});
    } catch (const cv::Exception& error) {
        throw OutputError(file.string() + ": cannot be encoded: " + error.err, "Write a smaller mask.");
    }
    const bool with_palette = mask.depth() == CV_8U && classes.size() <= 256;
    write_atomic(file, with_palette ? indexed(grey, mask, classes) : grey);
}

}  // namespace denseport
