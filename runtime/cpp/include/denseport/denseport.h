/* Denseport's runtime for C and whatever calls C: image in, mask or depth out. docs/cpp.md has an example.
 *
 * Functions that can fail return 0, or the exit code that a program should end with (2: bad input, 3: the machine lacks
 * something, 1: anything else); `denseport_error` then says what is wrong and how to mend it. */
#ifndef DENSEPORT_H
#define DENSEPORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DENSEPORT_C_API __attribute__((visibility("default")))
#else
#define DENSEPORT_C_API
#endif

/* A bundle, ready to segment images, or to estimate their depth; safe to call from several threads. */
typedef struct denseport_segmenter denseport_segmenter;
typedef struct denseport_depth_estimator denseport_depth_estimator;

/* The class of each pixel, row by row without gaps. */
typedef struct {
    int width, height;
    int bytes;    /* of a pixel: 1, or 2 in the machine's order where there are more than 256 classes */
    void* pixels; /* freed by denseport_free_mask */
} denseport_mask;

/* The depth of each pixel in the unit of its estimator, row by row without gaps. */
typedef struct {
    int width, height;
    float* values; /* freed by denseport_free_depth */
} denseport_depth;

/* What went wrong in this thread's last call that failed, in UTF-8; valid until its next call. */
DENSEPORT_C_API const char* denseport_error(void);

/* What `denseport::Options` in denseport.hpp has; all zeros: the defaults. */
typedef struct {
    const char *artifact, *protocol;
    const char* trust; /* one file of a public key */
    const char* cache;
    int threads;
} denseport_options;

/* options: NULL for the defaults. */
DENSEPORT_C_API int denseport_open(const char* bundle, const denseport_options* options, denseport_segmenter** out);

/* bgr: height rows of width pixels, 3 bytes each, stride bytes from row to row. Fills in *mask. */
DENSEPORT_C_API int denseport_segment(const denseport_segmenter* segmenter, const uint8_t* bgr, int width, int height,
                                      size_t stride, denseport_mask* mask);

/* The same of an image file. */
DENSEPORT_C_API int denseport_segment_file(const denseport_segmenter* segmenter, const char* file,
                                           denseport_mask* mask);

DENSEPORT_C_API void denseport_free_mask(denseport_mask* mask);

DENSEPORT_C_API int denseport_classes(const denseport_segmenter* segmenter);

/* Of class index, 0 to denseport_classes - 1: its name, and its colour as 0xRRGGBB. NULL and 0 beyond. */
DENSEPORT_C_API const char* denseport_class_name(const denseport_segmenter* segmenter, int index);
DENSEPORT_C_API uint32_t denseport_class_colour(const denseport_segmenter* segmenter, int index);

DENSEPORT_C_API void denseport_close(denseport_segmenter* segmenter);

/* The same for bundles of the task depth. */
DENSEPORT_C_API int denseport_open_depth(const char* bundle, const denseport_options* options,
                                         denseport_depth_estimator** out);
DENSEPORT_C_API int denseport_estimate(const denseport_depth_estimator* estimator, const uint8_t* bgr, int width,
                                       int height, size_t stride, denseport_depth* depth);
DENSEPORT_C_API int denseport_estimate_file(const denseport_depth_estimator* estimator, const char* file,
                                            denseport_depth* depth);
DENSEPORT_C_API void denseport_free_depth(denseport_depth* depth);

/* "metres", or "relative": up to a scale and a shift, which differ from image to image; "farther" or "nearer". */
DENSEPORT_C_API const char* denseport_unit(const denseport_depth_estimator* estimator);
DENSEPORT_C_API const char* denseport_larger_is(const denseport_depth_estimator* estimator);

DENSEPORT_C_API void denseport_close_depth(denseport_depth_estimator* estimator);

#ifdef __cplusplus
}
#endif
#endif
