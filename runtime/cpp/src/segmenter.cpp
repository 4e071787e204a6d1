// The public runtime: image in, mask or depth out; as denseport.runtime.segmenter.
#include <opencv2/core.hpp>
#if defined(__GLIBC__)  // known once another header was read
#include <malloc.h>
#endif

#ifdef DENSEPORT_TENSORRT
#include "backends/tensorrt.hpp"
#endif
#include "denseport/denseport.hpp"
#include "media/images.hpp"
#include "pipeline/pipeline.hpp"
#include "selection.hpp"
#include "signature.hpp"
#include "system/cpus.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using std::filesystem::path;

std::unique_ptr<Session> open(const Bundle& bundle, const std::string& name, const Machine& machine, int threads,
                              const path& cache) {
    const path model = bundle.verified(name);
    const Artifact& artifact = bundle.artifact(name);
    if (const auto [reason, remedy] = why_unsupported(artifact, machine); !reason.empty())
        throw MachineError(name + ": " + reason, remedy);
    if (!cache.empty() && (artifact.kind == "engine" || runs_on_openvino(artifact, machine)))
        throw InputError("cache " + cache.string() + ": " + name + " does not run on ONNX Runtime, which alone uses it",
                         "Leave it out, or choose an artifact for ONNX Runtime.");
#ifdef DENSEPORT_TENSORRT
    if (artifact.kind == "engine") return open_tensorrt(model, BuildRecord::of(artifact, name));
#endif
#ifdef DENSEPORT_OPENVINO
    if (runs_on_openvino(artifact, machine)) return open_openvino(model, artifact, threads);
#endif
#ifdef DENSEPORT_ONNXRUNTIME
    return open_onnxruntime(model, artifact, threads, cache);
#endif
    throw MachineError(
        model.string() + ": this build of the library has no back end for it at " + count(threads, "thread"),
        "Build it with -DDENSEPORT_OPENVINO=ON or -DDENSEPORT_ONNXRUNTIME=ON.");
}

// The bundle of a network of this task.
Bundle of_task(const path& folder, const std::string& wanted) {
    Bundle bundle(folder);
    if (const std::string& task = bundle.manifest().task; task != wanted) {
        const std::string opens = task == "depth" ? "DepthEstimator" : "Segmenter";
        throw InputError(
            folder.string() + ": its network is for " + task + ", not for " + wanted,
            "In C++: denseport::" + opens + "(bundle); in C: denseport_open" + (task == "depth" ? "_depth." : "."));
    }
    return bundle;
}

void check(const cv::Mat& image) {
    if (image.empty())
        throw ImageError("the image is empty: cv::imread could not read the file",
                         "Check its path, or give the path: a Segmenter says what is wrong with a file.");
    if (image.dims != 2 || image.type() != CV_8UC3)
        throw ImageError("expected an image of type CV_8UC3, BGR; got " + cv::typeToString(image.type()),
                         "Convert it with cv::cvtColor, or give the path of its file.");
}

// The result of an image, by one of the pipeline's two ways.
template <class Result>
Result of_image(const cv::Mat& image, const Pipeline& pipeline, Result (Pipeline::*way)(const cv::Mat&) const) {
    check(image);
    try {
        return (pipeline.*way)(image);
    } catch (const cv::Exception& error) {
        if (is_out_of_memory(error.what())) throw MachineError("memory ran out on an image", FREE_MEMORY);
        throw ImageError("OpenCV cannot resize or pad the image: " + error.err, "Give an image of another size.");
    }
}

template <class Result>
Result of_file(const path& file, const Pipeline& pipeline, Result (Pipeline::*way)(const cv::Mat&) const) {
    const auto begin = cv::getTickCount();
    const cv::Mat image = read_image(file, loading(pipeline.protocol.preprocess));
    const double decode = 1000.0 * double(cv::getTickCount() - begin) / cv::getTickFrequency();
    try {
        Result found = of_image(image, pipeline, way);
        found.timings.decode = decode;
        return found;
    } catch (const ImageError& error) {
        throw ImageError(file.string() + ": " + error.message(), error.remedy());
    }
}

}  // namespace

struct Predictor::State {
    Bundle bundle;
    Protocol protocol;
    int threads;
    Selection selection;
    std::unique_ptr<Session> session;

    State(const path& folder, const Options& options, const std::string& task)
        : bundle(of_task(folder, task)),
          protocol(parse_protocol(options.protocol, bundle.manifest())),
          threads(check_threads(options.threads)) {
        if (!options.trust.empty()) verify_signature(bundle, options.trust);
        const Machine machine = Machine::inspect();
        selection = select_artifact(bundle, options.artifact, machine);
        session = open(bundle, selection.name, machine, threads, options.cache);
#if defined(__GLIBC__)
        malloc_trim(0);  // what reading the model took and is free again goes back to the system
#endif
    }

    Pipeline pipeline() const { return {bundle, selection.name, protocol, *session, threads}; }
};

Predictor::Predictor(const path& bundle, const Options& options, const std::string& task)
    : state_(std::make_unique<State>(bundle, options, task)) {}
Predictor::~Predictor() = default;
Predictor::Predictor(Predictor&&) noexcept = default;
Predictor& Predictor::operator=(Predictor&&) noexcept = default;

const std::string& Predictor::name() const { return state_->bundle.manifest().name; }
const std::string& Predictor::artifact() const { return state_->selection.name; }
std::string Predictor::description() const { return artifact() + " on " + state_->session->description(); }
const std::string& Predictor::why() const { return state_->selection.why; }
const std::string& Predictor::caution() const { return state_->selection.caution; }
const std::map<std::string, std::string>& Predictor::passed_over() const { return state_->selection.others; }

Segmenter::Segmenter(const path& bundle, const Options& options) : Predictor(bundle, options, "segmentation") {}

Segmentation Segmenter::operator()(const cv::Mat& image) const {
    return of_image(image, state_->pipeline(), &Pipeline::segment);
}

Segmentation Segmenter::operator()(const path& file) const {
    return of_file(file, state_->pipeline(), &Pipeline::segment);
}

const std::vector<Class>& Segmenter::classes() const { return state_->bundle.manifest().classes; }

DepthEstimator::DepthEstimator(const path& bundle, const Options& options) : Predictor(bundle, options, "depth") {}

Depth DepthEstimator::operator()(const cv::Mat& image) const {
    return of_image(image, state_->pipeline(), &Pipeline::estimate);
}

Depth DepthEstimator::operator()(const path& file) const {
    return of_file(file, state_->pipeline(), &Pipeline::estimate);
}

const std::string& DepthEstimator::unit() const { return state_->bundle.manifest().depth->unit; }
const std::string& DepthEstimator::larger_is() const { return state_->bundle.manifest().depth->larger_is; }

std::string task(const path& bundle) { return Bundle(bundle).manifest().task; }

std::vector<std::string> backends() {
    std::vector<std::string> found;
#ifdef DENSEPORT_OPENVINO
    found.push_back("openvino");
#endif
#ifdef DENSEPORT_ONNXRUNTIME
    found.push_back("onnxruntime");
#endif
#ifdef DENSEPORT_TENSORRT
    found.push_back(DENSEPORT_TENSORRT);
#endif
    return found;
}

}  // namespace denseport
