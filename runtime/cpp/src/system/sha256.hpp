// SHA-256, by OpenSSL, which uses what the processor has for it.
#pragma once

#include <filesystem>
#include <string>

namespace denseport {

// In hexadecimal. Throws std::system_error: the file cannot be read.
std::string sha256_of(const std::filesystem::path& file);
std::string sha256_of_text(const std::string& text);

}  // namespace denseport
