// The way of an image to its mask, in three steps; as denseport.runtime.pipeline.pipeline.
#pragma once

#include <string>

#include "backends/session.hpp"
#include "bundle/bundle.hpp"
#include "pipeline/sliding.hpp"

namespace denseport {

// What a segmenter does to every image. Holds no state of its own: safe in threads.
struct Pipeline {
    const Bundle& bundle;
    const std::string& artifact;  // its name
    const Protocol& protocol;
    const Session& session;
    int threads;  // for post-processing

    // Throws ImageError: too narrow for a patch, or of a size that the network does not take; BundleError,
    // MachineError.
    Segmentation operator()(const cv::Mat& image) const;

private:
    struct Clock;
    cv::Mat slid(const cv::Mat& image, const View& view, Clock& clock) const;
    cv::Mat averaged(const cv::Mat& image, const std::vector<View>& views, Clock& clock) const;
    std::vector<Tensor> logits_of(const cv::Mat& image, const View& view, Clock& clock) const;
    Placement placement(const cv::Mat& image, const View& view, const Tensor& logits) const;
    Tensor network(const Tensor& input) const;
};

}  // namespace denseport
