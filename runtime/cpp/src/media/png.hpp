// Chunks of PNG files. Source: https://www.w3.org/TR/png-3/ (section 5).
#pragma once

#include <cstdint>
#include <vector>

namespace denseport {

constexpr std::size_t PNG_SIGNATURE = 8, PNG_HEADER = 25;  // bytes: of a PNG's begin, of its first chunk

void add_number(std::vector<unsigned char>& bytes, std::uint32_t number);  // the largest byte first
// A chunk with its length and checksum; ``kind`` has four letters.
void add_chunk(std::vector<unsigned char>& png, const char* kind, const std::vector<unsigned char>& body);

}  // namespace denseport
