// Denseport's runtime in C++: image in, mask or depth out, without Python. docs/cpp.md has a page to start from.
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
#include <optional>
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
    // Public keys, PEM: the owner of one of them must have signed the bundle (docs/signing.md); none: nothing is
    // checked.
    std::vector<std::filesystem::path> trust = {};
    // A folder of this user's own, made where it is missing. ONNX Runtime's weights are laid out for this processor
    // there, once, and mapped: processes share them. Whoever can write to it decides what runs. Empty: none.
    std::filesystem::path cache = {};
};

// Wall time of an image in each stage, milliseconds.
struct Timings {
    double decode = 0;       // reading and decoding a file; 0 for an array
    double preprocess = 0;   // resize, normalise
    double infer = 0;        // the session
    double postprocess = 0;  // logits to mask, or depths, at the image's own size
};

// The result of a segmenter for one image.
struct Segmentation {
    cv::Mat mask;  // the class of each pixel, at the image's own size: CV_8UC1, of more than 256 classes CV_16UC1
    Timings timings;
};

// The result of a depth estimator for one image.
struct Depth {
    cv::Mat depth;                  // at the image's own size, in the unit: CV_32FC1
    std::string unit;               // "metres"; "relative": up to a scale and a shift, which differ from image to image
    std::string larger_is;          // "farther" or "nearer"
    std::optional<double> largest;  // the network's limit, in the unit
    Timings timings;
};

struct Class {
    std::string name;
    std::array<std::uint8_t, 3> colour;  // RGB
};

// What a segmenter and a depth estimator share: a bundle, one artifact of which is open. Safe to call from several
// threads.
class DENSEPORT_API Predictor {
public:
    ~Predictor();
    Predictor(Predictor&&) noexcept;
    Predictor& operator=(Predictor&&) noexcept;

    const std::string& name() const;      // the model's
    const std::string& artifact() const;  // that runs
    std::string description() const;      // artifact, library, threads; for people
    const std::string& why() const;       // it was chosen
    const std::string& caution() const;   // what nobody has shown of it yet, and the command that does; mostly empty
    const std::map<std::string, std::string>& passed_over() const;  // name and reason of each other artifact

protected:
    Predictor(const std::filesystem::path& bundle, const Options& options, const std::string& task);
    struct State;
    std::unique_ptr<State> state_;
};

// A bundle, ready to segment images.
class DENSEPORT_API Segmenter : public Predictor {
public:
    // Verifies the signature, where `Options::trust` asks for it, and the artifact's files against the manifest's
    // hashes, and opens it.
    //
    // Throws BundleError (incomplete, altered, not signed by whom is trusted, or it needs what this runtime lacks),
    // InputError (an option, or a bundle of another task), OutputError (the cache), MachineError.
    explicit Segmenter(const std::filesystem::path& bundle, const Options& options = {});

    // Throws ImageError: no image of type CV_8UC3, or one that does not reach the network; BundleError, MachineError.
    Segmentation operator()(const cv::Mat& image) const;
    // Of a file: decoded as the checkpoint's test loads it.
    Segmentation operator()(const std::filesystem::path& file) const;

    const std::vector<Class>& classes() const;  // in the order of the mask's values
};

// A bundle of the task depth, ready to estimate it. Arguments and errors are those of `Segmenter`.
class DENSEPORT_API DepthEstimator : public Predictor {
public:
    explicit DepthEstimator(const std::filesystem::path& bundle, const Options& options = {});

    Depth operator()(const cv::Mat& image) const;
    Depth operator()(const std::filesystem::path& file) const;

    const std::string& unit() const;       // as of `Depth`
    const std::string& larger_is() const;  // likewise
};

// What the network of a bundle is for: "segmentation" or "depth". Throws BundleError.
DENSEPORT_API std::string task(const std::filesystem::path& bundle);

// Writes a mask as a PNG whose values are classes, indexed in the palette's colours; above 256 classes 16 bits of grey.
//
// The file is whole or not there. Throws OutputError.
DENSEPORT_API void save_mask(const std::filesystem::path& file, const cv::Mat& mask, const std::vector<Class>& classes);

// Writes depths as the name ends: .png, grey of 16 bits whose values are (depth - offset) * scale, both told by its
// tEXt chunk "Depth"; .npy, numpy's float32.
//
// scale: of a .png, values a unit, with an offset of 0; nothing: of metres 1000 where the network's limit is below 54,
// else 256; of relative depth what spreads the image's own over all values. The file is whole or not there. Throws
// OutputError: another ending, a depth that a .png cannot hold, a place that cannot be written.
DENSEPORT_API void save_depth(const std::filesystem::path& file, const Depth& found, std::optional<double> scale = {});

// What artifacts run on, in this build: "openvino", "onnxruntime", "tensorrt" or "tensorrt_rtx".
DENSEPORT_API std::vector<std::string> backends();

}  // namespace denseport
