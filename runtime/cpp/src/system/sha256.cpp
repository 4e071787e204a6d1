#include "system/sha256.hpp"

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <system_error>
#include <vector>

namespace denseport {
namespace {

// The first 32 bits of the fractions of the cube roots of the first 64 primes.
constexpr std::array<std::uint32_t, 64> ROUNDS = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
constexpr std::size_t BLOCK = 64;  // bytes

std::uint32_t turned(std::uint32_t value, int bits) { return (value >> bits) | (value << (32 - bits)); }

class Sha256 {
public:
    void add(const unsigned char* data, std::size_t size) {
        total_ += size;
        if (filled_ > 0) {
            const std::size_t part = std::min(size, BLOCK - filled_);
            std::memcpy(buffer_.data() + filled_, data, part);
            filled_ += part, data += part, size -= part;
            if (filled_ < BLOCK) return;
            mix(buffer_.data());
            filled_ = 0;
        }
        for (; size >= BLOCK; data += BLOCK, size -= BLOCK) mix(data);
        if (size > 0) std::memcpy(buffer_.data(), data, filled_ = size);
    }

    std::string digest() {
        const std::uint64_t bits = 8 * total_;
        std::vector<unsigned char> end(1, 0x80);
        while ((total_ + end.size()) % BLOCK != BLOCK - 8) end.push_back(0);
        for (int shift = 56; shift >= 0; shift -= 8) end.push_back(static_cast<unsigned char>(bits >> shift));
        add(end.data(), end.size());
        std::string text;
        for (const std::uint32_t word : state_) {
            char digits[9];
            std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(word));
            text += digits;
        }
        return text;
    }

private:
    void mix(const unsigned char* block) {
        std::uint32_t w[64];
        for (int i = 0; i < 16; ++i)
            w[i] = std::uint32_t(block[4 * i]) << 24 | std::uint32_t(block[4 * i + 1]) << 16 |
                   std::uint32_t(block[4 * i + 2]) << 8 | block[4 * i + 3];
        for (int i = 16; i < 64; ++i) {
            const std::uint32_t low = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ (w[i - 15] >> 3);
            const std::uint32_t high = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ (w[i - 2] >> 10);
            w[i] = w[i - 16] + low + w[i - 7] + high;
        }
        auto [a, b, c, d, e, f, g, h] = state_;
        for (int i = 0; i < 64; ++i) {
            const std::uint32_t one =
                h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i];
            const std::uint32_t two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        const std::array<std::uint32_t, 8> found = {a, b, c, d, e, f, g, h};
        for (int i = 0; i < 8; ++i) state_[i] += found[i];
    }

    std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, BLOCK> buffer_{};
    std::size_t filled_ = 0;
    std::uint64_t total_ = 0;
};

}  // namespace

std::string sha256_of(const std::filesystem::path& file) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(file.c_str(), "rb"), std::fclose);
    if (!stream) throw std::system_error(errno, std::generic_category());
    Sha256 hash;
    std::vector<unsigned char> chunk(1 << 20);
    while (const std::size_t got = std::fread(chunk.data(), 1, chunk.size(), stream.get())) hash.add(chunk.data(), got);
    if (std::ferror(stream.get())) throw std::system_error(errno, std::generic_category());
    return hash.digest();
}

std::string sha256_of_text(const std::string& text) {
    Sha256 hash;
    hash.add(reinterpret_cast<const unsigned char*>(text.data()), text.size());
    return hash.digest();
}

}  // namespace denseport
