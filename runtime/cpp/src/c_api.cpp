// The C functions of denseport.h: no exception leaves them.
#include <cstdlib>
#include <cstring>
#include <new>

#include <opencv2/core.hpp>

#include "denseport/denseport.h"
#include "denseport/denseport.hpp"

struct denseport_segmenter {
    denseport::Segmenter segmenter;
};

namespace {

thread_local std::string last_error;

// The code of what went wrong, whose words are kept.
template <class Work>
int guarded(const Work& work) {
    try {
        work();
        return 0;
    } catch (const denseport::Error& error) {
        last_error = error.what();
        return error.exit_code();
    } catch (const std::exception& error) {
        last_error = error.what();
        return 1;
    }
}

template <class... Pointers>
void refuse_null(const Pointers*... pointers) {
    if (((pointers == nullptr) || ...))
        throw denseport::InputError("an argument is NULL, which must not be", "Give the address of an object.");
}

void fill(const cv::Mat& found, denseport_mask* mask) {
    const std::size_t row = std::size_t(found.cols) * found.elemSize(), size = row * std::size_t(found.rows);
    void* pixels = std::malloc(size);
    if (!pixels) throw std::bad_alloc();
    for (int y = 0; y < found.rows; ++y)
        std::memcpy(static_cast<char*>(pixels) + std::size_t(y) * row, found.ptr(y), row);
    *mask = {found.cols, found.rows, int(found.elemSize()), pixels};
}

const denseport::Class* class_of(const denseport_segmenter* segmenter, int index) {
    if (index < 0 || index >= denseport_classes(segmenter)) return nullptr;
    return &segmenter->segmenter.classes()[std::size_t(index)];
}

}  // namespace

const char* denseport_error(void) { return last_error.c_str(); }

int denseport_open(const char* bundle, const char* artifact, const char* protocol, int threads,
                   denseport_segmenter** out) {
    return guarded([&] {
        refuse_null(bundle, out);
        denseport::Options options;
        if (artifact) options.artifact = artifact;
        if (protocol) options.protocol = protocol;
        options.threads = threads;
        *out = new denseport_segmenter{denseport::Segmenter(bundle, options)};
    });
}

int denseport_segment(const denseport_segmenter* segmenter, const uint8_t* bgr, int width, int height, size_t stride,
                      denseport_mask* mask) {
    return guarded([&] {
        refuse_null(segmenter, bgr, mask);
        if (width < 1 || height < 1 || stride < 3 * std::size_t(width))
            throw denseport::ImageError("an image of " + std::to_string(width) + " x " + std::to_string(height) +
                                            " pixels with " + std::to_string(stride) + " bytes a row is none",
                                        "Give positive sizes, and at least 3 bytes a pixel.");
        const cv::Mat image(height, width, CV_8UC3, const_cast<uint8_t*>(bgr), stride);  // which is only read
        fill(segmenter->segmenter(image).mask, mask);
    });
}

int denseport_segment_file(const denseport_segmenter* segmenter, const char* file, denseport_mask* mask) {
    return guarded([&] {
        refuse_null(segmenter, file, mask);
        fill(segmenter->segmenter(std::filesystem::path(file)).mask, mask);
    });
}

void denseport_free_mask(denseport_mask* mask) {
    if (!mask) return;
    std::free(mask->pixels);
    *mask = {};
}

int denseport_classes(const denseport_segmenter* segmenter) {
    return segmenter ? int(segmenter->segmenter.classes().size()) : 0;
}

const char* denseport_class_name(const denseport_segmenter* segmenter, int index) {
    const denseport::Class* found = class_of(segmenter, index);
    return found ? found->name.c_str() : nullptr;
}

uint32_t denseport_class_colour(const denseport_segmenter* segmenter, int index) {
    const denseport::Class* found = class_of(segmenter, index);
    return found ? uint32_t(found->colour[0]) << 16 | uint32_t(found->colour[1]) << 8 | found->colour[2] : 0;
}

void denseport_close(denseport_segmenter* segmenter) { delete segmenter; }
