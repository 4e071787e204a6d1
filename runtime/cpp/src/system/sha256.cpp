#include "system/sha256.hpp"

#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>
#include <vector>

namespace denseport {

namespace {

using Digest = std::array<unsigned char, 32>;

std::string hexadecimal(bool done, const Digest& digest) {
    if (!done) throw std::system_error(std::make_error_code(std::errc::not_supported), "OpenSSL computes no SHA-256");
    std::string text;
    for (const unsigned byte : digest) {
        std::array<char, 3> digits{};
        std::snprintf(digits.data(), digits.size(), "%02x", byte);
        text += digits.data();
    }
    return text;
}

}  // namespace

std::string sha256_of(const std::filesystem::path& file) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(file.c_str(), "rb"), std::fclose);
    if (!stream) throw std::system_error(errno, std::generic_category());
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> hash(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    bool done = hash != nullptr && EVP_DigestInit_ex(hash.get(), EVP_sha256(), nullptr) == 1;
    std::vector<unsigned char> chunk(1 << 20);
    while (const std::size_t got = std::fread(chunk.data(), 1, chunk.size(), stream.get()))
        done = done && EVP_DigestUpdate(hash.get(), chunk.data(), got) == 1;
    if (std::ferror(stream.get())) throw std::system_error(errno, std::generic_category());
    Digest digest{};
    done = done && EVP_DigestFinal_ex(hash.get(), digest.data(), nullptr) == 1;
    return hexadecimal(done, digest);
}

std::string sha256_of_text(const std::string& text) {
    Digest digest{};
    const bool done = EVP_Digest(text.data(), text.size(), digest.data(), nullptr, EVP_sha256(), nullptr) == 1;
    return hexadecimal(done, digest);
}

}  // namespace denseport
