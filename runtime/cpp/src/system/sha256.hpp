// SHA-256 of a file. Source: FIPS 180-4, sections 4.1.2, 5.1.1 and 6.2.
#pragma once

#include <filesystem>
#include <string>

namespace denseport {

// In hexadecimal. Throws std::system_error: the file cannot be read.
std::string sha256_of(const std::filesystem::path& file);
std::string sha256_of_text(const std::string& text);

}  // namespace denseport
