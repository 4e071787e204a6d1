// Denseport's runtime in C++: image in, mask out, without Python. docs/cpp.md has a page to start from.
//
//     denseport::Segmenter segment("bundle");
//     cv::Mat mask = segment("street.jpg").mask;
//
// Images are CV_8UC3, BGR, as cv::imread gives them. Every function throws `denseport::Error`, or std::bad_alloc where
// memory ran out outside of the libraries beneath.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <opencv2/core/mat.hpp>

#if defined(__GNUC__)
#define DENSEPORT_API __attribute__((visibility("default")))
#else
#define DENSEPORT_API
#endif

namespace denseport {

// Base of every error: what is wrong and where, and how to mend it.
class DENSEPORT_API Error : public std::runtime_error {
public:
    Error(std::string message, std::string remedy, int exit_code);
    const std::string& message() const { return message_; }
    const std::string& remedy() const { return remedy_; }
    int exit_code() const {
        return exit_code_;
    }  // of a program that ends with it: 2, bad input; 3, the machine lacks something

private:
    std::string message_, remedy_;
    int exit_code_;
};

// Something that the user gave (an argument, a file) is wrong.
class DENSEPORT_API InputError : public Error {
public:
    InputError(std::string message, std::string remedy) : Error(std::move(message), std::move(remedy), 2) {}
};

// An image that is missing, cannot be decoded, or is too narrow for the network.
class DENSEPORT_API ImageError : public InputError {
public:
    using InputError::InputError;
};

// A bundle that is incomplete, altered since it was written, or of an unknown format.
class DENSEPORT_API BundleError : public InputError {
public:
    using InputError::InputError;
};

// A place that cannot be written.
class DENSEPORT_API OutputError : public InputError {
public:
    using InputError::InputError;
};

// This machine, or this build of the library, lacks something that was asked for.
class DENSEPORT_API MachineError : public Error {
public:
    MachineError(std::string message, std::string remedy) : Error(std::move(message), std::move(remedy), 3) {}
};

struct Options {
    std::string artifact;                // which artifact runs; empty: the best for this machine, as Python chooses
    std::string protocol = "reference";  // how images reach the network: docs/evaluation.md has them all
    int threads = 0;  // for the network and for post-processing; 0: the CPUs that this process may use
};

// Wall time of an image in each stage, milliseconds.
struct Timings {
    double decode = 0;       // reading and decoding a file; 0 for an array
    double preprocess = 0;   // resize, normalise
    double infer = 0;        // the session
    double postprocess = 0;  // logits to mask, at the image's own size
};

// The result for one image.
struct Segmentation {
    cv::Mat mask;  // the class of each pixel, at the image's own size: CV_8UC1, of more than 256 classes CV_16UC1
    Timings timings;
};

struct Class {
    std::string name;
    std::array<std::uint8_t, 3> colour;  // RGB
};

// A bundle, ready to segment images. Safe to call from several threads.
class DENSEPORT_API Segmenter {
public:
    // Verifies the artifact's files against the manifest's hashes and opens it.
    //
    // Throws BundleError (incomplete, altered, or it needs what this runtime lacks), InputError (an option),
    // MachineError.
    explicit Segmenter(const std::filesystem::path& bundle, const Options& options = {});
    ~Segmenter();
    Segmenter(Segmenter&&) noexcept;
    Segmenter& operator=(Segmenter&&) noexcept;

    // Throws ImageError: no image of type CV_8UC3, or one that does not reach the network; BundleError, MachineError.
    Segmentation operator()(const cv::Mat& image) const;
    // Of a file: decoded as the checkpoint's test loads it.
    Segmentation operator()(const std::filesystem::path& file) const;

    const std::string& name() const;            // the model's
    const std::vector<Class>& classes() const;  // in the order of the mask's values
    const std::string& artifact() const;        // that runs
    std::string description() const;            // artifact, library, threads; for people
    const std::string& why() const;             // it was chosen
    const std::string& caution() const;  // what nobody has shown of it yet, and the command that does; mostly empty
    const std::map<std::string, std::string>& passed_over() const;  // name and reason of each other artifact

private:
    struct State;
    std::unique_ptr<State> state_;
};

// Writes a mask as a PNG whose values are classes, indexed in the palette's colours; above 256 classes 16 bits of grey.
//
// The file is whole or not there. Throws OutputError.
DENSEPORT_API void save_mask(const std::filesystem::path& file, const cv::Mat& mask, const std::vector<Class>& classes);

// What artifacts run on, in this build: "openvino", "onnxruntime".
DENSEPORT_API std::vector<std::string> backends();

}  // namespace denseport
