#include "system/files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

#include "denseport/denseport.hpp"

namespace denseport {
namespace {

using std::filesystem::path;

[[noreturn]] void fail(int error = errno) { throw std::system_error(error, std::generic_category()); }

// An open file, closed when it goes out of scope.
class Descriptor {
public:
    explicit Descriptor(const path& file) : number_(open(file.c_str(), O_RDONLY | O_CLOEXEC)) {
        if (number_ < 0) fail();
    }
    ~Descriptor() { close(number_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return number_; }
    std::size_t size() const {
        struct stat about;
        if (fstat(number_, &about) != 0) fail();
        if (S_ISDIR(about.st_mode)) fail(EISDIR);
        return std::size_t(about.st_size);
    }

private:
    int number_;
};

// A temporary file beside the final one; removed unless it was renamed.
class Temporary {
public:
    explicit Temporary(const path& file) : name_(file.string() + ".XXXXXX"), number_(mkstemp(name_.data())) {
        if (number_ < 0) fail();
    }
    ~Temporary() {
        if (number_ >= 0) close(number_);
        if (!renamed_) unlink(name_.c_str());
    }
    Temporary(const Temporary&) = delete;
    Temporary& operator=(const Temporary&) = delete;

    void write_all(const std::vector<unsigned char>& data) {
        for (std::size_t at = 0; at < data.size();) {
            const ssize_t done = write(number_, data.data() + at, data.size() - at);
            if (done < 0 && errno != EINTR) fail();
            at += done < 0 ? 0 : std::size_t(done);
        }
    }

    void become(const path& file) {
        const mode_t mask = umask(0);
        umask(mask);
        if (fchmod(number_, 0666 & ~mask) != 0 || fsync(number_) != 0) fail();
        if (std::rename(name_.c_str(), file.c_str()) != 0) fail();
        renamed_ = true;
    }

private:
    std::string name_;
    int number_;
    bool renamed_ = false;
};

}  // namespace

std::vector<unsigned char> read_file(const path& file) {
    const Descriptor descriptor(file);
    std::vector<unsigned char> data(descriptor.size());
    std::size_t at = 0;
    for (;;) {  // until its end: what /proc and pipes hold has no size
        if (at == data.size()) data.resize(data.size() + 65536);
        const ssize_t got = read(descriptor.get(), data.data() + at, data.size() - at);
        if (got < 0 && errno != EINTR) fail();
        if (got == 0) break;
        at += got < 0 ? 0 : std::size_t(got);
    }
    data.resize(at);
    return data;
}

void write_atomic(const path& file, const std::vector<unsigned char>& data) {
    try {
        Temporary temporary(file);
        temporary.write_all(data);
        temporary.become(file);
    } catch (const std::system_error& error) {
        throw OutputError(file.string() + ": cannot be written: " + error.code().message(),
                          "Choose another place, or make room.");
    }
}

void make_private(const path& folder) {
    std::filesystem::create_directories(folder.parent_path().empty() ? "." : folder.parent_path());
    if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) fail();
    struct stat about;
    if (lstat(folder.c_str(), &about) != 0) fail();
    std::string what;
    if (!S_ISDIR(about.st_mode))
        what = "not a folder itself";
    else if (about.st_uid != geteuid())
        what = "it belongs to another user";
    else if (about.st_mode & 0022)
        what = "it can be written by other users";
    if (!what.empty())
        throw OutputError(folder.string() + ": " + what,
                          "Give a folder of your own: who can write to it decides what runs.");
}

Mapped::Mapped(const path& file) {
    const Descriptor descriptor(file);
    size_ = descriptor.size();
    if (size_ == 0) return;
    void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
    if (data == MAP_FAILED) fail();
    data_ = static_cast<const unsigned char*>(data);
}

void Mapped::let_go() const {
    if (data_) madvise(const_cast<unsigned char*>(data_), size_, MADV_DONTNEED);
}

Mapped::~Mapped() {
    if (data_) munmap(const_cast<unsigned char*>(data_), size_);
}

}  // namespace denseport
