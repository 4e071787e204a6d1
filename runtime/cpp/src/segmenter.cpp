// The public runtime: image in, mask out; as denseport.runtime.segmenter.
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <opencv2/core.hpp>

#include "denseport/denseport.hpp"
#include "media/images.hpp"
#include "pipeline/pipeline.hpp"
#include "selection.hpp"
#include "system/cpus.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using std::filesystem::path;

std::unique_ptr<Session> open(const Bundle& bundle, const std::string& name, const Machine& machine, int threads) {
    const path model = bundle.verified(name);
    const Artifact& artifact = bundle.artifact(name);
    if (const auto [reason, remedy] = why_unsupported(artifact, machine); !reason.empty())
        throw MachineError(name + ": " + reason, remedy);
#ifdef DENSEPORT_OPENVINO
    if (runs_on_openvino(artifact, machine)) return open_openvino(model, artifact, threads);
#endif
#ifdef DENSEPORT_ONNXRUNTIME
    return open_onnxruntime(model, artifact, threads);
#endif
    throw MachineError(
        model.string() + ": this build of the library has no back end for it at " + count(threads, "thread"),
        "Build it with -DDENSEPORT_OPENVINO=ON or -DDENSEPORT_ONNXRUNTIME=ON.");
}

// This runtime has no Pillow, whose grey levels differ from OpenCV's.
void refuse_pillow(const Protocol& protocol, const path& bundle) {
    std::vector<Steps> views = {protocol.preprocess};
    if (protocol.augmentation) {
        views.clear();
        for (const Step& scale : protocol.augmentation->scales)
            views.push_back(with_resize(protocol.preprocess, scale));
    }
    bool resizes = false;
    for (const Steps& steps : views)
        for (const Step& step : steps)
            if (const Sampling* sampling = sampling_of(step)) resizes |= sampling->library == "pillow";
    if (resizes || loading(protocol.preprocess).library == "pillow")
        throw MachineError(bundle.string() + ": images are " + (resizes ? "resized" : "decoded") +
                               " with Pillow, which the C++ runtime does not have",
                           "Run it with Python's runtime and its extra pillow.");
}

// The bundle of a segmentation network.
Bundle segmenting(const path& folder) {
    Bundle bundle(folder);
    if (const std::string& task = bundle.manifest().task; task != "segmentation")
        throw InputError(folder.string() + ": its network is for " + task + ", which the C++ runtime does not run yet",
                         "In Python: denseport.runtime.DepthEstimator(bundle).");
    return bundle;
}

}  // namespace

struct Segmenter::State {
    Bundle bundle;
    Protocol protocol;
    int threads;
    Selection selection;
    std::unique_ptr<Session> session;

    State(const path& folder, const Options& options)
        : bundle(segmenting(folder)),
          protocol(parse_protocol(options.protocol, bundle.manifest())),
          threads(check_threads(options.threads)) {
        refuse_pillow(protocol, folder);
        const Machine machine = Machine::inspect();
        selection = select_artifact(bundle, options.artifact, machine);
        session = open(bundle, selection.name, machine, threads);
#if defined(__GLIBC__)
        malloc_trim(0);  // what reading the model took and is free again goes back to the system
#endif
    }
};

Segmenter::Segmenter(const path& bundle, const Options& options) : state_(std::make_unique<State>(bundle, options)) {}
Segmenter::~Segmenter() = default;
Segmenter::Segmenter(Segmenter&&) noexcept = default;
Segmenter& Segmenter::operator=(Segmenter&&) noexcept = default;

Segmentation Segmenter::operator()(const cv::Mat& image) const {
    if (image.empty())
        throw ImageError("the image is empty: cv::imread could not read the file",
                         "Check its path, or give the path: a Segmenter says what is wrong with a file.");
    if (image.dims != 2 || image.type() != CV_8UC3)
        throw ImageError("expected an image of type CV_8UC3, BGR; got " + cv::typeToString(image.type()),
                         "Convert it with cv::cvtColor, or give the path of its file.");
    const State& state = *state_;
    try {
        return Pipeline{state.bundle, state.selection.name, state.protocol, *state.session, state.threads}(image);
    } catch (const cv::Exception& error) {
        if (is_out_of_memory(error.what())) throw MachineError("memory ran out on an image", FREE_MEMORY);
        throw ImageError("OpenCV cannot resize or pad the image: " + error.err, "Give an image of another size.");
    }
}

Segmentation Segmenter::operator()(const path& file) const {
    const auto begin = cv::getTickCount();
    const cv::Mat image = read_image(file, loading(state_->protocol.preprocess));
    const double decode = 1000.0 * double(cv::getTickCount() - begin) / cv::getTickFrequency();
    try {
        Segmentation found = (*this)(image);
        found.timings.decode = decode;
        return found;
    } catch (const ImageError& error) {
        throw ImageError(file.string() + ": " + error.message(), error.remedy());
    }
}

const std::string& Segmenter::name() const { return state_->bundle.manifest().name; }
const std::vector<Class>& Segmenter::classes() const { return state_->bundle.manifest().classes; }
const std::string& Segmenter::artifact() const { return state_->selection.name; }
std::string Segmenter::description() const { return artifact() + " on " + state_->session->description(); }
const std::string& Segmenter::why() const { return state_->selection.why; }
const std::string& Segmenter::caution() const { return state_->selection.caution; }
const std::map<std::string, std::string>& Segmenter::passed_over() const { return state_->selection.others; }

std::vector<std::string> backends() {
    std::vector<std::string> found;
#ifdef DENSEPORT_OPENVINO
    found.push_back("openvino");
#endif
#ifdef DENSEPORT_ONNXRUNTIME
    found.push_back("onnxruntime");
#endif
    return found;
}

}  // namespace denseport
