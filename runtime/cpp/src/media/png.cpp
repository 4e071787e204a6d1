#include "media/png.hpp"

namespace denseport {
namespace {

std::uint32_t crc32(const std::vector<unsigned char>& data) {
    std::uint32_t crc = 0xFFFFFFFF;
    for (const unsigned char byte : data) {
        crc ^= byte;
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return ~crc;
}

}  // namespace

void add_number(std::vector<unsigned char>& bytes, std::uint32_t number) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<unsigned char>(number >> shift));
}

void add_chunk(std::vector<unsigned char>& png, const char* kind, const std::vector<unsigned char>& body) {
    std::vector<unsigned char> named(kind, kind + 4);
    named.insert(named.end(), body.begin(), body.end());
    add_number(png, std::uint32_t(body.size()));
    png.insert(png.end(), named.begin(), named.end());
    add_number(png, crc32(named));
}

}  // namespace denseport
