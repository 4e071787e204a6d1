// The way of an image to its mask or its depth, in three steps; as denseport.runtime.pipeline.pipeline and .depth.
#pragma once

#include <chrono>
#include <string>

#include "backends/session.hpp"
#include "bundle/bundle.hpp"
#include "pipeline/sliding.hpp"

namespace denseport {

// What is done to every image. Holds no state of its own: safe in threads.
struct Pipeline {
    const Bundle& bundle;
    const std::string& artifact;  // its name
    const Protocol& protocol;
    const Session& session;
    int threads;  // for post-processing

    // Throw ImageError: too narrow for a patch, or of a size that the network does not take; BundleError, MachineError.
    Segmentation segment(const cv::Mat& image) const;
    Depth estimate(const cv::Mat& image) const;

private:
    class Clock;
    cv::Mat slid(const cv::Mat& image, const View& view, Clock& clock) const;
    cv::Mat averaged(const cv::Mat& image, const std::vector<View>& views, Clock& clock) const;
    std::vector<Tensor> outputs_of(const cv::Mat& image, const View& view, Clock& clock) const;
    Placement placement(const cv::Mat& image, const View& view, const Tensor& logits) const;
    ResampleMatrix depth_axis(long long found, long long seen, long long cut, long long size) const;
    Tensor network(const Tensor& input) const;
};

// Adds up what each stage takes.
class Pipeline::Clock {
public:
    Timings timings;

    // What passed since the last call was spent in this stage.
    void spent(double Timings::*stage) {
        const auto now = std::chrono::steady_clock::now();
        timings.*stage += std::chrono::duration<double, std::milli>(now - last_).count();
        last_ = now;
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace denseport
