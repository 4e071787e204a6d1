// A mask as a PNG; as denseport.runtime.media.images.write_mask.
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>

#include "denseport/denseport.hpp"
#include "media/codecs.hpp"
#include "media/png.hpp"
#include "system/files.hpp"

namespace denseport {
namespace {

using Bytes = std::vector<unsigned char>;

// Run lengths of the differences from the row above. 19 and 32 are IMWRITE_PNG_FILTER and its value UP, which OpenCV
// has names for since 4.12 and ignores before.
const std::vector<int> RUNS = {cv::IMWRITE_PNG_STRATEGY, cv::IMWRITE_PNG_STRATEGY_RLE, 19, 32};

// OpenCV cannot write an indexed PNG, but its 8-bit grey lacks the header and the palette alone. Indices beyond the
// palette are black. Source: https://www.w3.org/TR/png-3/ (PLTE: section 11.2.2).
Bytes indexed(const Bytes& grey, const cv::Mat& mask, const std::vector<Class>& classes) {
    double largest = 0;
    cv::minMaxLoc(mask, nullptr, &largest);
    Bytes header, palette;
    add_number(header, std::uint32_t(mask.cols));
    add_number(header, std::uint32_t(mask.rows));
    header.insert(header.end(), {8, 3, 0, 0, 0});  // bits, colour type, the only compression and filter, not interlaced
    for (const Class& each : classes) palette.insert(palette.end(), each.colour.begin(), each.colour.end());
    palette.resize(std::max(palette.size(), 3 * (std::size_t(largest) + 1)));
    Bytes png(grey.begin(), grey.begin() + PNG_SIGNATURE);
    add_chunk(png, "IHDR", header);
    add_chunk(png, "PLTE", palette);
    png.insert(png.end(), grey.begin() + PNG_SIGNATURE + PNG_HEADER, grey.end());
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
