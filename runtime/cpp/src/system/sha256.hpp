// SHA-256 of a file, by OpenSSL, which uses what the processor has for it.
#pragma once

#include <filesystem>
#include <string>

namespace denseport {

// In hexadecimal. Throws std::system_error: the file cannot be read.
std::string sha256_of(const std::filesystem::path& file);

}  // namespace denseport
