// Files read whole, and written whole or not at all.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace denseport {

// Throws std::system_error: it cannot be read, or is a folder.
std::vector<unsigned char> read_file(const std::filesystem::path& file);
// Throws OutputError; an existing file is replaced when the new one is whole.
void write_atomic(const std::filesystem::path& file, const std::vector<unsigned char>& data);

// Makes a folder that this user alone can write, where it is missing. Throws std::system_error, or OutputError: it is a
// link, another user's, or open to others.
void make_private(const std::filesystem::path& folder);

// A file's bytes in memory, read by the system when they are touched.
class Mapped {
public:
    explicit Mapped(const std::filesystem::path& file);  // throws std::system_error
    ~Mapped();
    Mapped(const Mapped&) = delete;
    Mapped& operator=(const Mapped&) = delete;
    const unsigned char* data() const { return data_; }
    std::size_t size() const { return size_; }
    void let_go() const;  // of the memory: what is touched again is read again

private:
    const unsigned char* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace denseport
