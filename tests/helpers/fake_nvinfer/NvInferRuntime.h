// What examples/cpp/segment.cpp and runtime/cpp use of TensorRT's header, on host memory, for
// tests/project/test_cpp_example.py and tests/runtime/cpp/test_tensorrt.py. The engine has two profiles, 8 x 8 to 32 x 8
// and 8 x 8 to 8 x 32 (width x height); its class is 1 where red is above 0, at half the size. As in TensorRT a context
// takes shapes of its selected profile only, and runs in memory that was given.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>

namespace nvinfer1 {
struct Dims {
    std::int32_t nbDims{0};
    std::int64_t d[8]{};
};
struct Dims4 : Dims {
    Dims4(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t e) : Dims{4, {a, b, c, e}} {}
};
enum class DataType { kFLOAT, kHALF };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector { kMIN, kOPT, kMAX };
enum class ProfilingVerbosity { kLAYER_NAMES_ONLY, kNONE, kDETAILED };
enum class ExecutionContextAllocationStrategy { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };

struct ILogger {
    enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity severity, char const* text) noexcept = 0;
    virtual ~ILogger() = default;
};

struct IExecutionContext {
    int profile{0};
    Dims shape;
    float *image{nullptr}, *logits{nullptr};
    void* memory{nullptr};
    std::int64_t given{0};

    void setNvtxVerbosity(ProfilingVerbosity) noexcept {}
    bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t) noexcept { return profile = index, index < 2; }
    bool setInputShape(char const*, Dims const& wanted) noexcept {
        shape = wanted;
        std::int64_t const fixed = wanted.d[2 + profile], free = wanted.d[3 - profile];
        return wanted.d[0] == 1 && wanted.d[1] == 3 && fixed == 8 && free >= 8 && free <= 32;
    }
    Dims getTensorShape(char const*) const noexcept { return Dims4{1, 2, shape.d[2] / 2, shape.d[3] / 2}; }
    std::size_t updateDeviceMemorySizeForShapes() noexcept { return std::size_t(shape.d[2] * shape.d[3]); }
    void setDeviceMemoryV2(void* address, std::int64_t size) noexcept { memory = address, given = size; }
    bool setTensorAddress(char const* name, void* address) noexcept {
        (std::strcmp(name, "image") ? logits : image) = static_cast<float*>(address);
        return reinterpret_cast<std::uintptr_t>(address) % 256 == 0;
    }
    bool enqueueV3(cudaStream_t) noexcept {
        std::int64_t const h = shape.d[2], w = shape.d[3];
        if (!image || !logits || !memory || given < h * w) return false;
        for (std::int64_t y = 0; y < h / 2; ++y)
            for (std::int64_t x = 0; x < w / 2; ++x)
                logits[(h / 2 + y) * (w / 2) + x] = image[2 * y * w + 2 * x], logits[y * (w / 2) + x] = 0;
        return true;
    }
};

struct ICudaEngine {
    DataType getTensorDataType(char const*) const noexcept { return DataType::kFLOAT; }
    std::int32_t getNbIOTensors() const noexcept { return 2; }
    char const* getIOTensorName(std::int32_t index) const noexcept { return index ? "logits" : "image"; }
    TensorIOMode getTensorIOMode(char const* name) const noexcept {
        return std::strcmp(name, "image") ? TensorIOMode::kOUTPUT : TensorIOMode::kINPUT;
    }
    std::int32_t getNbOptimizationProfiles() const noexcept { return 2; }
    Dims getProfileShape(char const*, std::int32_t index, OptProfileSelector which) const noexcept {
        std::int64_t const longer = which == OptProfileSelector::kMAX ? 32 : 8;
        return index ? Dims4{1, 3, longer, 8} : Dims4{1, 3, 8, longer};
    }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy = {}) noexcept {
        auto* context = new IExecutionContext;
        static char enough[32 * 32];
        if (strategy == ExecutionContextAllocationStrategy::kSTATIC) context->setDeviceMemoryV2(enough, sizeof enough);
        return context;
    }
};

struct IRuntime {
    void setEngineHostCodeAllowed(bool) noexcept {}
    ICudaEngine* deserializeCudaEngine(void const*, std::size_t size) noexcept {
        return size ? new ICudaEngine : nullptr;
    }
};
inline IRuntime* createInferRuntime(ILogger&) noexcept { return new IRuntime; }
}  // namespace nvinfer1

inline std::int32_t getInferLibMajorVersion() noexcept { return 11; }
inline std::int32_t getInferLibMinorVersion() noexcept { return 1; }
inline std::int32_t getInferLibPatchVersion() noexcept { return 0; }
inline std::int32_t getInferLibBuildVersion() noexcept { return 106; }
