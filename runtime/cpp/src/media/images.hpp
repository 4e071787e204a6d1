// Images, in and out; as denseport.runtime.media.images.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "bundle/preprocessing.hpp"

namespace denseport {

// An image file as CV_8UC3, BGR, decoded as mmsegmentation's LoadImageFromFile does. Throws ImageError.
cv::Mat read_image(const std::filesystem::path& file, const Load& load);
// The same of a file's bytes; ``name`` is what messages call it.
cv::Mat decode_image(const std::vector<unsigned char>& data, const std::string& name, const Load& load);

// Whether a JPEG, PNG or WebP lacks its end, or a PNG its pixels, told without decoding.
bool is_cut_short(const std::vector<unsigned char>& data);

}  // namespace denseport
