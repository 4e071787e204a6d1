// From a depth network's output to the depth of each pixel; as denseport.runtime.pipeline.depth, which has the sources.
#include <opencv2/core.hpp>

#include "pipeline/pipeline.hpp"

namespace denseport {
namespace {

// (height, width) to (width, height).
std::vector<float> turned(const std::vector<float>& values, long long width) {
    const cv::Mat image(int(values.size() / std::size_t(width)), int(width), CV_32FC1,
                        const_cast<float*>(values.data()));  // which is only read
    std::vector<float> found(values.size());
    cv::transpose(image, cv::Mat(image.cols, image.rows, CV_32FC1, found.data()));
    return found;
}

}  // namespace

Depth Pipeline::estimate(const cv::Mat& image) const {
    Clock clock;
    const View view = protocol_views({image.rows, image.cols}, protocol, bundle.manifest().patch_size)[0];
    const Tensor found = outputs_of(image, view, clock)[0];
    const long long height = found.shape[2], width = found.shape[3];
    const ResampleMatrix rows = depth_axis(height, view.size.height, view.cut.height, image.rows);
    const ResampleMatrix cols = depth_axis(width, view.size.width, view.cut.width, image.cols);
    const std::vector<float> wide = cols.apply(turned(found.values, width));  // (image.cols, height)
    const std::vector<float> whole = rows.apply(turned(wide, height));
    const DepthOutput& output = *bundle.manifest().depth;
    Depth depth{cv::Mat(image.rows, image.cols, CV_32FC1), output.unit, output.larger_is, output.largest, {}};
    std::copy(whole.begin(), whole.end(), depth.depth.ptr<float>());
    clock.spent(&Timings::postprocess);
    depth.timings = clock.timings;
    return depth;
}

// From the ``found`` depths along an axis, of an input of ``seen`` pixels, to the ``size`` of the image: one resize.
// What was padded is cut off at the size of the input before it.
ResampleMatrix Pipeline::depth_axis(long long found, long long seen, long long cut, long long size) const {
    const auto resize =
        bundle.manifest().depth->interpolation == "bicubic" ? &ResampleMatrix::cubic : &ResampleMatrix::linear;
    const bool corners = bundle.manifest().align_corners;
    if (cut == 0) return resize(found, size, corners);
    return resize(seen - cut, size, corners).widened(seen).after(resize(found, seen, corners));
}

}  // namespace denseport
