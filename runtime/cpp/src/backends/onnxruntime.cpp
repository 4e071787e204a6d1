// Runs an ONNX artifact with ONNX Runtime, on the CPU; as denseport.runtime.backends.onnxruntime.
#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <system_error>

#include "backends/session.hpp"
#include "system/cpus.hpp"
#include "system/files.hpp"
#include "system/sha256.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using std::filesystem::path;

const OrtApi& api() {
    static const OrtApi* found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!found)
        throw MachineError("ONNX Runtime " + std::string(OrtGetApiBase()->GetVersionString()) +
                               " is older than the headers that this program was built with",
                           "Install a newer ONNX Runtime, or build it again.");
    return *found;
}

// What went wrong, in ONNX Runtime's words.
struct Failure {
    OrtErrorCode code;
    std::string message;
};

void check(OrtStatus* status) {
    if (!status) return;
    const Failure failure{api().GetErrorCode(status), api().GetErrorMessage(status)};
    api().ReleaseStatus(status);
    throw failure;
}

// Releases something of ONNX Runtime's when it goes out of scope.
struct Release {
    void operator()(OrtEnv* each) const { api().ReleaseEnv(each); }
    void operator()(OrtSessionOptions* each) const { api().ReleaseSessionOptions(each); }
    void operator()(OrtSession* each) const { api().ReleaseSession(each); }
    void operator()(OrtMemoryInfo* each) const { api().ReleaseMemoryInfo(each); }
    void operator()(OrtValue* each) const { api().ReleaseValue(each); }
    void operator()(OrtTypeInfo* each) const { api().ReleaseTypeInfo(each); }
    void operator()(OrtTensorTypeAndShapeInfo* each) const { api().ReleaseTensorTypeAndShapeInfo(each); }
};
template <class T>
using Owned = std::unique_ptr<T, Release>;

OrtEnv* environment() {
    static const Owned<OrtEnv> found = [] {
        // Else its releases since 1.29 write an identifier and look for a server of their makers.
        setenv("ORT_DISABLE_TELEMETRY", "1", 0);
        OrtEnv* made = nullptr;
        check(api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "denseport", &made));  // its warnings are about fusions
        check(api().DisableTelemetryEvents(made));
        return Owned<OrtEnv>(made);
    }();
    return found.get();
}

Owned<OrtSessionOptions> options(const std::string& target, int threads) {
    OrtSessionOptions* made = nullptr;
    check(api().CreateSessionOptions(&made));
    Owned<OrtSessionOptions> found(made);
    check(api().SetIntraOpNumThreads(made, threads));
    if (target != FOR_CPU)
        // x86 without VNNI adds INT8 products in 16 bits; this keeps them from saturating, and costs speed. The weights
        // of graphs for that back end cannot.
        check(api().AddSessionConfigEntry(made, "session.x64quantprecision", "1"));
    if (target == FOR_TENSORRT)
        // Its fusions would make integer operators of FP8, and mistake FP16 behind DequantizeLinear.
        check(api().SetSessionGraphOptimizationLevel(made, ORT_DISABLE_ALL));
    return found;
}

std::vector<long long> shape_of(const OrtTensorTypeAndShapeInfo* info) {
    std::size_t rank = 0;
    check(api().GetDimensionsCount(info, &rank));
    std::vector<std::int64_t> sizes(rank);
    check(api().GetDimensions(info, sizes.data(), rank));
    return {sizes.begin(), sizes.end()};
}

Owned<OrtSession> session_of(const path& model, const OrtSessionOptions* options) {
    OrtSession* made = nullptr;
    check(api().CreateSession(environment(), model.c_str(), options, &made));
    return Owned<OrtSession>(made);
}

// A model as ONNX Runtime lays it out for this processor: its weights, packed, are mapped from their file, where
// opening the bundle's own model copies them. Results are the same to the bit.
class Prepared {
public:
    Prepared(const path& cache, const Artifact& artifact) {
        std::string key = artifact.target + "\n" + OrtGetApiBase()->GetVersionString() + "\n" + processor();
        for (const auto& [_, digest] : artifact.files) key += "\n" + digest;
        folder_ = cache / sha256_of_text(key);
    }

    path model() const { return folder_ / GRAPH; }

    // ONNX Runtime compares nothing with what it wrote: of an altered weight it would compute other logits.
    bool is_whole() const {
        try {
            const std::vector<unsigned char> noted = read_file(folder_ / NOTED);
            return std::string(noted.begin(), noted.end()) == digests(folder_);
        } catch (const std::system_error&) {
            return false;
        }
    }

    void make(const path& original, OrtSessionOptions* options) const {
        std::string name = folder_.string() + ".XXXXXX";
        if (!mkdtemp(name.data())) throw std::system_error(errno, std::generic_category());
        const path made = name;
        try {
            check(api().SetOptimizedModelFilePath(options, (made / GRAPH).c_str()));
            for (const auto& [setting, value] : {
                     std::pair("session.optimized_model_external_initializers_file_name", WEIGHTS),
                     std::pair("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
                     std::pair("session.save_external_prepacked_constant_initializers", "1"),
                 })
                check(api().AddSessionConfigEntry(options, setting, value));
            session_of(original, options);
            const std::string found = digests(made);
            write_atomic(made / NOTED, {found.begin(), found.end()});
            std::filesystem::remove_all(folder_);
            std::filesystem::rename(made, folder_);
        } catch (...) {
            std::error_code ignored;
            std::filesystem::remove_all(made, ignored);
            if (!is_whole()) throw;  // else another process made it in the meantime
        }
    }

private:
    static constexpr const char *GRAPH = "model.onnx", *WEIGHTS = "weights.bin", *NOTED = "sha256";

    static std::string digests(const path& folder) {
        return sha256_of(folder / GRAPH) + "\n" + sha256_of(folder / WEIGHTS) + "\n";
    }

    path folder_;
};

void make(const Prepared& prepared, const path& model, OrtSessionOptions* options, const path& cache) {
    try {
        prepared.make(model, options);
    } catch (const Failure& failure) {
        throw OutputError(
            "cache " + cache.string() + ": " + model.string() + " cannot be laid out in it: " + failure.message,
            "Give a folder with more room, or none.");
    }
}

// Of the model itself, or of what is in the cache, which is made where it is missing.
Owned<OrtSession> open_session(const path& model, const Artifact& artifact, int threads, const path& cache) {
    if (cache.empty()) return session_of(model, options(artifact.target, threads).get());
    try {
        make_private(cache);
        const Prepared prepared(cache, artifact);
        if (!prepared.is_whole()) make(prepared, model, options(artifact.target, threads).get(), cache);
        const Owned<OrtSessionOptions> ready = options(artifact.target, threads);
        check(api().SetSessionGraphOptimizationLevel(ready.get(), ORT_DISABLE_ALL));  // it is optimized
        return session_of(prepared.model(), ready.get());
    } catch (const std::system_error& error) {
        throw OutputError("cache " + cache.string() + ": cannot be used: " + error.code().message(),
                          "Give a folder of your own with room for two copies of the model, or none.");
    }
}

class OnnxRuntimeSession final : public Session {
public:
    OnnxRuntimeSession(const path& model, const Artifact& artifact, int threads, const path& cache)
        : model_(model), threads_(threads) {
        try {
            session_ = open_session(model, artifact, threads, cache);
            check(api().GetAllocatorWithDefaultOptions(&allocator_));
            char* name = nullptr;
            check(api().SessionGetOutputName(session_.get(), 0, allocator_, &name));
            output_ = name;
            check(api().AllocatorFree(allocator_, name));
        } catch (const Failure& failure) {
            throw_opening(failure);
        }
        refuse_other_interfaces();
    }

    Tensor run(const Tensor& image) const override {
        try {
            return run_tensor(image);
        } catch (const Failure& failure) {
            if (is_out_of_memory(failure.message))
                throw MachineError(model_.string() + ": memory ran out on an input of " + listed(image.shape),
                                   FREE_MEMORY);
            throw BundleError(model_.string() + ": ONNX Runtime cannot run it on an input of " + listed(image.shape) +
                                  ": " + failure.message,
                              "Give an image of another size, or export or import it again.");
        }
    }

    std::string description() const override {
        return "ONNX Runtime " + std::string(OrtGetApiBase()->GetVersionString()) + ", CPUExecutionProvider, " +
               count(threads_, "thread");
    }

private:
    Tensor run_tensor(const Tensor& image) const {
        OrtMemoryInfo* made = nullptr;
        check(api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &made));
        const Owned<OrtMemoryInfo> memory(made);
        const std::vector<std::int64_t> shape(image.shape.begin(), image.shape.end());
        OrtValue* value = nullptr;
        // It only reads the image, whose memory lives as long as the call.
        check(api().CreateTensorWithDataAsOrtValue(memory.get(), const_cast<float*>(image.values.data()),
                                                   image.values.size() * sizeof(float), shape.data(), shape.size(),
                                                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
        const Owned<OrtValue> input(value);
        const char *in = "image", *out = output_.c_str();
        const OrtValue* inputs[] = {input.get()};
        value = nullptr;
        check(api().Run(session_.get(), nullptr, &in, inputs, 1, &out, 1, &value));
        const Owned<OrtValue> output(value);
        return tensor_of(output.get(), image);
    }

    Tensor tensor_of(OrtValue* value, const Tensor& image) const {
        OrtTensorTypeAndShapeInfo* made = nullptr;
        check(api().GetTensorTypeAndShape(value, &made));
        const Owned<OrtTensorTypeAndShapeInfo> info(made);
        Tensor result{shape_of(info.get()), {}};
        check_logits(model_, image, result.shape);
        std::size_t count = 0;
        check(api().GetTensorShapeElementCount(info.get(), &count));
        void* data = nullptr;
        check(api().GetTensorMutableData(value, &data));
        const float* values = static_cast<const float*>(data);
        result.values.assign(values, values + count);
        return result;
    }

    [[noreturn]] void throw_opening(const Failure& failure) const {
        if (is_out_of_memory(failure.message))
            throw MachineError(model_.string() + ": memory ran out when it was opened", FREE_MEMORY);
        if (failure.code == ORT_NOT_IMPLEMENTED)
            throw MachineError(
                model_.string() + ": ONNX Runtime's CPUExecutionProvider lacks an operator of it: " + failure.message,
                "Run another artifact, such as model.onnx.");
        throw BundleError(model_.string() + ": ONNX Runtime cannot load it: " + failure.message, EXPORT_AGAIN);
    }

    // One float image batch in, one tensor of float logits out.
    void refuse_other_interfaces() const {
        std::size_t inputs = 0, outputs = 0;
        std::string name;
        bool usual = false;
        try {
            check(api().SessionGetInputCount(session_.get(), &inputs));
            check(api().SessionGetOutputCount(session_.get(), &outputs));
            char* found = nullptr;
            check(api().SessionGetInputName(session_.get(), 0, allocator_, &found));
            name = found;
            check(api().AllocatorFree(allocator_, found));
            usual = is_float_of_rank_4(&OrtApi::SessionGetInputTypeInfo) &&
                    is_float_of_rank_4(&OrtApi::SessionGetOutputTypeInfo);
        } catch (const Failure& failure) {
            throw_opening(failure);
        }
        if (inputs != 1 || outputs == 0 || name != "image" || !usual)
            throw BundleError(model_.string() + ": takes or gives other tensors than a segmentation network",
                              "Export it again.");
    }

    template <class Getter>
    bool is_float_of_rank_4(Getter getter) const {
        OrtTypeInfo* made = nullptr;
        check((api().*getter)(session_.get(), 0, &made));
        const Owned<OrtTypeInfo> type(made);
        const OrtTensorTypeAndShapeInfo* info = nullptr;
        check(api().CastTypeInfoToTensorInfo(made, &info));
        if (!info) return false;
        ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        check(api().GetTensorElementType(info, &element));
        return element == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && shape_of(info).size() == 4;
    }

    path model_;
    int threads_;
    Owned<OrtSession> session_;
    OrtAllocator* allocator_ = nullptr;  // ONNX Runtime's own
    std::string output_;
};

}  // namespace

std::unique_ptr<Session> open_onnxruntime(const path& model, const Artifact& artifact, int threads, const path& cache) {
    return std::make_unique<OnnxRuntimeSession>(model, artifact, threads, cache);
}

}  // namespace denseport
