#include "backends/tensorrt.hpp"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <mutex>
#include <system_error>

#include "system/files.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using std::filesystem::path;

const std::string FREE_GPU = "Free memory on the GPU; if that is not it, build the engine again on this machine.";

void check(cudaError_t error, const std::string& what) {
    if (error != cudaSuccess) throw MachineError(what + ": CUDA: " + cudaGetErrorString(error), FREE_GPU);
}

// TensorRT's errors, the last of which messages tell.
class Log final : public nvinfer1::ILogger {
public:
    std::string last() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_.empty() ? "it gave no reason" : last_;
    }

private:
    void log(Severity severity, const char* text) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        last_ = text;
    }

    mutable std::mutex mutex_;
    std::string last_;
};

// Memory of the GPU, which grows and is freed when it goes out of scope.
class Buffer {
public:
    Buffer() = default;
    ~Buffer() { cudaFree(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* of(std::size_t bytes) {
        if (bytes > size_) {
            cudaFree(data_);
            data_ = nullptr;
            size_ = 0;
            check(cudaMalloc(&data_, bytes), "memory for a network of " + std::to_string(bytes >> 20) + " MiB");
            size_ = bytes;
        }
        return data_;
    }

private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

// A queue of work that waits for no other one.
class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "no stream"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    operator cudaStream_t() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

std::vector<long long> list_of(const nvinfer1::Dims& shape) { return {shape.d, shape.d + shape.nbDims}; }

std::size_t bytes_of(const std::vector<long long>& shape) {
    std::size_t bytes = sizeof(float);
    for (const long long size : shape) bytes *= std::size_t(size);
    return bytes;
}

// The input shapes (N, 3, H, W) of an optimization profile.
struct Profile {
    std::vector<long long> minimum, maximum;

    bool takes(const std::vector<long long>& shape) const {
        bool fits = shape.size() == minimum.size();
        for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = minimum[i] <= shape[i] && shape[i] <= maximum[i];
        return fits;
    }
    std::string words() const {
        std::vector<std::string> axes;
        for (std::size_t i = 0; i < minimum.size(); ++i)
            axes.push_back(shown(minimum[i]) + (minimum[i] == maximum[i] ? "" : ".." + shown(maximum[i])));
        return "(" + joined(axes) + ")";
    }
};

class TensorRTSession final : public Session {
public:
    TensorRTSession(const path& model, const BuildRecord& record) : model_(model) {
        const std::string build_again = "Run: denseport build BUNDLE --engine " + record.flavour;
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        if (!runtime_)
            throw MachineError(model.string() + ": " + name() + " cannot start: " + log_.last(),
                               "Look with nvidia-smi whether the driver works.");
        // A version compatible engine brings the lean runtime of its own release, which is run.
        if (record.version_compatible) runtime_->setEngineHostCodeAllowed(true);
        const auto plan = read_file(model);
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_)
            throw BundleError(model.string() + ": " + name() + " cannot open it: " + log_.last(), build_again);
        find_tensors(build_again);
        // Its memory is given for each size: the context would take what the largest of all profiles needs.
        context_.reset(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
        if (!context_) throw MachineError(model.string() + ": no execution context: " + log_.last(), FREE_GPU);
        context_->setNvtxVerbosity(nvinfer1::ProfilingVerbosity::kNONE);  // naming layers to profilers takes time
    }

    Tensor run(const Tensor& image) const override {
        const std::lock_guard<std::mutex> lock(mutex_);  // one context, one image at a time
        accept(image.shape);
        Tensor found{list_of(context_->getTensorShape(output_.c_str())), {}};
        check_logits(model_, image, found.shape);
        void* in = image_.of(bytes_of(image.shape));
        void* out = result_.of(bytes_of(found.shape));
        found.values.resize(bytes_of(found.shape) / sizeof(float));
        check(cudaMemcpyAsync(in, image.values.data(), bytes_of(image.shape), cudaMemcpyHostToDevice, stream_), "copy");
        if (!context_->setTensorAddress(input_.c_str(), in) || !context_->setTensorAddress(output_.c_str(), out) ||
            !context_->enqueueV3(stream_))
            throw MachineError(model_.string() + ": " + name() + " could not run the engine: " + log_.last(), FREE_GPU);
        check(cudaMemcpyAsync(found.values.data(), out, bytes_of(found.shape), cudaMemcpyDeviceToHost, stream_),
              "copy");
        check(cudaStreamSynchronize(stream_), model_.string() + ": the engine failed");
        return found;
    }

    std::string description() const override { return name() + " " + tensorrt_version() + ", GPU"; }

private:
    static std::string name() { return title(DENSEPORT_TENSORRT); }

    // One float tensor in, one out, and the shapes that they may have.
    void find_tensors(const std::string& build_again) {
        bool usual = engine_->getNbIOTensors() == 2;
        for (int i = 0; usual && i < 2; ++i) {
            const char* each = engine_->getIOTensorName(i);
            usual = engine_->getTensorDataType(each) == nvinfer1::DataType::kFLOAT;
            (engine_->getTensorIOMode(each) == nvinfer1::TensorIOMode::kINPUT ? input_ : output_) = each;
        }
        if (!usual || input_.empty() || output_.empty())
            throw BundleError(model_.string() + ": expected one float tensor in and one out", build_again);
        for (int i = 0; i < engine_->getNbOptimizationProfiles(); ++i) {
            using Selector = nvinfer1::OptProfileSelector;
            profiles_.push_back({list_of(engine_->getProfileShape(input_.c_str(), i, Selector::kMIN)),
                                 list_of(engine_->getProfileShape(input_.c_str(), i, Selector::kMAX))});
        }
    }

    // Makes the context ready for an input, with memory for it.
    void accept(const std::vector<long long>& shape) const {
        if (shape == shape_) return;
        const auto found =
            std::find_if(profiles_.begin(), profiles_.end(), [&](const Profile& each) { return each.takes(shape); });
        if (found == profiles_.end()) {
            std::vector<std::string> allowed;
            for (const Profile& each : profiles_) allowed.push_back(each.words());
            throw InputError("an input of " + listed(shape) +
                                 " is outside of what the engine was built for: (N, C, H, W) in " +
                                 joined(allowed, " or "),
                             "Resize images (--protocol fixed:WIDTHxHEIGHT), or build an engine for this size: "
                             "denseport build BUNDLE --min … --opt … --max …");
        }
        shape_.clear();
        const int profile = int(found - profiles_.begin());
        nvinfer1::Dims dims{};
        dims.nbDims = int(shape.size());
        std::copy(shape.begin(), shape.end(), dims.d);
        const bool done = (profile == profile_ || context_->setOptimizationProfileAsync(profile, stream_)) &&
                          context_->setInputShape(input_.c_str(), dims);
        if (!done)
            throw MachineError(
                model_.string() + ": " + name() + " refused an input of " + listed(shape) + ": " + log_.last(),
                FREE_GPU);
        profile_ = profile;
        const auto needed = context_->updateDeviceMemorySizeForShapes();
        context_->setDeviceMemoryV2(activations_.of(std::max<std::size_t>(needed, 1)), std::int64_t(needed));
        shape_ = shape;
    }

    path model_;
    Log log_;  // outlives what writes to it, as those below outlive what is made of them
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::string input_, output_;
    std::vector<Profile> profiles_;
    mutable std::mutex mutex_;
    Stream stream_;
    mutable Buffer image_, result_, activations_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    mutable int profile_ = 0;               // a new context's
    mutable std::vector<long long> shape_;  // that the context is ready for
};

}  // namespace

std::string tensorrt_version() {
    return shown(getInferLibMajorVersion()) + "." + shown(getInferLibMinorVersion()) + "." +
           shown(getInferLibPatchVersion()) + "." + shown(getInferLibBuildVersion());
}

std::optional<Capability> gpu_capability() {
    int count = 0, major = 0, minor = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return std::nullopt;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "the GPU");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "the GPU");
    return Capability{major, minor};
}

std::unique_ptr<Session> open_tensorrt(const path& model, const BuildRecord& record) {
    try {
        return std::make_unique<TensorRTSession>(model, record);
    } catch (const std::system_error& error) {
        throw BundleError(model.string() + ": cannot be read: " + error.code().message(), "Check its permissions.");
    }
}

}  // namespace denseport
