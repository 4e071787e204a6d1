// The C functions of denseport.h: no exception leaves them.
#include <cstdlib>
#include <cstring>
#include <new>

#include <nlohmann/json.hpp>
#include <opencv2/core.hpp>

#include "denseport/denseport.h"
#include "denseport/denseport.hpp"

struct denseport_segmenter {
    denseport::Segmenter segmenter;
};

struct denseport_depth_estimator {
    denseport::DepthEstimator estimator;
};

namespace {

thread_local std::string last_error;

// With U+FFFD in place of bytes that are not UTF-8: messages quote damaged files and names of files.
std::string utf8(const std::string& text) {
    using Json = nlohmann::json;
    return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

// The code of what went wrong, whose words are kept.
template <class Work>
int guarded(const Work& work) {
    try {
        work();
        return 0;
    } catch (const denseport::Error& error) {
        last_error = utf8(error.what());
        return error.exit_code();
    } catch (const std::exception& error) {
        last_error = utf8(error.what());
        return 1;
    }
}

template <class... Pointers>
void refuse_null(const Pointers*... pointers) {
    if (((pointers == nullptr) || ...))
        throw denseport::InputError("an argument is NULL, which must not be", "Give the address of an object.");
}

denseport::Options options_of(const denseport_options* given) {
    denseport::Options options;
    if (!given) return options;
    if (given->artifact) options.artifact = given->artifact;
    if (given->protocol) options.protocol = given->protocol;
    if (given->trust) options.trust = {given->trust};
    if (given->cache) options.cache = given->cache;
    options.threads = given->threads;
    return options;
}

// The caller's pixels, not copied.
cv::Mat image_of(const uint8_t* bgr, int width, int height, size_t stride) {
    if (width < 1 || height < 1 || stride < 3 * std::size_t(width))
        throw denseport::ImageError("an image of " + std::to_string(width) + " x " + std::to_string(height) +
                                        " pixels with " + std::to_string(stride) + " bytes a row is none",
                                    "Give positive sizes, and at least 3 bytes a pixel.");
    return {height, width, CV_8UC3, const_cast<uint8_t*>(bgr), stride};  // which is only read
}

// The rows of a matrix without gaps, in memory for `free`.
void* copied(const cv::Mat& found) {
    const std::size_t row = std::size_t(found.cols) * found.elemSize(), size = row * std::size_t(found.rows);
    void* pixels = std::malloc(size);
    if (!pixels) throw std::bad_alloc();
    for (int y = 0; y < found.rows; ++y)
        std::memcpy(static_cast<char*>(pixels) + std::size_t(y) * row, found.ptr(y), row);
    return pixels;
}

void fill(const cv::Mat& found, denseport_mask* mask) {
    *mask = {found.cols, found.rows, int(found.elemSize()), copied(found)};
}

void fill(const cv::Mat& found, denseport_depth* depth) {
    *depth = {found.cols, found.rows, static_cast<float*>(copied(found))};
}

const denseport::Class* class_of(const denseport_segmenter* segmenter, int index) {
    if (index < 0 || index >= denseport_classes(segmenter)) return nullptr;
    return &segmenter->segmenter.classes()[std::size_t(index)];
}

}  // namespace

const char* denseport_error(void) { return last_error.c_str(); }

int denseport_open(const char* bundle, const denseport_options* options, denseport_segmenter** out) {
    return guarded([&] {
        refuse_null(bundle, out);
        *out = new denseport_segmenter{denseport::Segmenter(bundle, options_of(options))};
    });
}

int denseport_segment(const denseport_segmenter* segmenter, const uint8_t* bgr, int width, int height, size_t stride,
                      denseport_mask* mask) {
    return guarded([&] {
        refuse_null(segmenter, bgr, mask);
        fill(segmenter->segmenter(image_of(bgr, width, height, stride)).mask, mask);
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

int denseport_open_depth(const char* bundle, const denseport_options* options, denseport_depth_estimator** out) {
    return guarded([&] {
        refuse_null(bundle, out);
        *out = new denseport_depth_estimator{denseport::DepthEstimator(bundle, options_of(options))};
    });
}

int denseport_estimate(const denseport_depth_estimator* estimator, const uint8_t* bgr, int width, int height,
                       size_t stride, denseport_depth* depth) {
    return guarded([&] {
        refuse_null(estimator, bgr, depth);
        fill(estimator->estimator(image_of(bgr, width, height, stride)).depth, depth);
    });
}

int denseport_estimate_file(const denseport_depth_estimator* estimator, const char* file, denseport_depth* depth) {
    return guarded([&] {
        refuse_null(estimator, file, depth);
        fill(estimator->estimator(std::filesystem::path(file)).depth, depth);
    });
}

void denseport_free_depth(denseport_depth* depth) {
    if (!depth) return;
    std::free(depth->values);
    *depth = {};
}

const char* denseport_unit(const denseport_depth_estimator* estimator) {
    return estimator ? estimator->estimator.unit().c_str() : nullptr;
}

const char* denseport_larger_is(const denseport_depth_estimator* estimator) {
    return estimator ? estimator->estimator.larger_is().c_str() : nullptr;
}

void denseport_close_depth(denseport_depth_estimator* estimator) { delete estimator; }
