// Runs an engine of a bundle with nothing but TensorRT and the CUDA runtime: image in (PPM), class map out (PGM).
//
//     segment ENGINE INPUT.ppm OUTPUT.pgm [MEAN_R MEAN_G MEAN_B STD_R STD_G STD_B]
//
// The image goes to the network at its own size, which the engine's profile must cover; resize it beforehand as the
// bundle's manifest.json says ("preprocess"), whose mean and std are the last six arguments (default: 127.5).
// An engine may have a profile for landscapes and one for portraits: the first that takes the image is selected.
// A plugin of Denseport lies inside the engine as PTX: no plugin library is loaded, and no Python.
//
// An engine is native code: open only those that you built or whose hash you know (manifest.json has it).
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(bool good, std::string const& what) {
    if (!good) throw std::runtime_error(what);
}

void check(cudaError_t error, std::string const& what) {
    check(error == cudaSuccess, what + ": " + cudaGetErrorString(error));
}

class Logger final : public nvinfer1::ILogger {
    void log(Severity severity, char const* text) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << text << '\n';
    }
};

struct Image {
    int height, width;
    std::vector<std::uint8_t> rgb;  // height x width x 3
};

// Device memory, freed when it goes out of scope.
class DeviceBuffer {
public:
    explicit DeviceBuffer(std::size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
    ~DeviceBuffer() { cudaFree(data_); }
    DeviceBuffer(DeviceBuffer const&) = delete;
    DeviceBuffer& operator=(DeviceBuffer const&) = delete;
    void* get() const { return data_; }

private:
    void* data_{nullptr};
};

// A queue of work that waits for no other one, destroyed when it goes out of scope.
class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    operator cudaStream_t() const { return stream_; }

private:
    cudaStream_t stream_{nullptr};
};

Image read_ppm(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int width = 0, height = 0, maximum = 0;
    file >> magic >> width >> height >> maximum;
    check(magic == "P6" && maximum == 255 && width > 0 && height > 0 && width <= 16384 && height <= 16384,
          path + ": not a binary PPM of 8 bits, at most 16384 pixels a side, without comments");
    file.get();
    Image image{height, width, std::vector<std::uint8_t>(std::size_t(3) * height * width)};
    file.read(reinterpret_cast<char*>(image.rgb.data()), std::streamsize(image.rgb.size()));
    check(bool(file), path + ": ends too early");
    return image;
}

std::vector<char> read_file(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    check(bool(file), path + ": cannot be read");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// HWC bytes to normalised CHW floats.
std::vector<float> normalise(Image const& image, std::array<float, 6> const& mean_std) {
    std::size_t const pixels = std::size_t(image.height) * image.width;
    std::vector<float> tensor(3 * pixels);
    for (std::size_t i = 0; i < pixels; ++i)
        for (int c = 0; c < 3; ++c)
            tensor[c * pixels + i] = (image.rgb[3 * i + c] - mean_std[c]) / mean_std[3 + c];
    return tensor;
}

// The class of each pixel from logits (C, h, w): the first of the greatest, as in numpy.
std::vector<std::uint8_t> argmax(std::vector<float> const& logits, int classes) {
    std::size_t const pixels = logits.size() / classes;
    std::vector<std::uint8_t> mask(pixels, 0);
    for (int c = 1; c < classes; ++c)
        for (std::size_t i = 0; i < pixels; ++i)
            if (logits[c * pixels + i] > logits[mask[i] * pixels + i]) mask[i] = std::uint8_t(c);
    return mask;
}

// The first profile of the engine that takes an input of this shape; -1: none does.
int find_profile(nvinfer1::ICudaEngine const& engine, nvinfer1::Dims const& wanted) {
    for (int i = 0; i < engine.getNbOptimizationProfiles(); ++i) {
        nvinfer1::Dims const low = engine.getProfileShape("image", i, nvinfer1::OptProfileSelector::kMIN);
        nvinfer1::Dims const high = engine.getProfileShape("image", i, nvinfer1::OptProfileSelector::kMAX);
        bool fits = low.nbDims == wanted.nbDims;
        for (int k = 0; fits && k < wanted.nbDims; ++k) fits = low.d[k] <= wanted.d[k] && wanted.d[k] <= high.d[k];
        if (fits) return i;
    }
    return -1;
}

void run(std::string const& engine_path, std::string const& input, std::string const& output,
         std::array<float, 6> const& mean_std) {
    Image const image = read_ppm(input);
    std::vector<char> const plan = read_file(engine_path);

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(logger)};
    check(runtime != nullptr, "TensorRT cannot start: is there an NVIDIA GPU?");
    std::unique_ptr<nvinfer1::ICudaEngine> engine{runtime->deserializeCudaEngine(plan.data(), plan.size())};
    check(engine != nullptr, engine_path + ": built for another GPU or TensorRT (see denseport inspect BUNDLE)");
    check(engine->getTensorDataType("image") == nvinfer1::DataType::kFLOAT &&
              engine->getTensorDataType("logits") == nvinfer1::DataType::kFLOAT,
          engine_path + ": expected float tensors named image and logits");
    nvinfer1::Dims4 const size{1, 3, image.height, image.width};
    int const profile = find_profile(*engine, size);
    check(profile >= 0, input + ": a size outside of the engine's profiles (see denseport inspect BUNDLE)");

    Stream const stream;
    // Its memory is given below: as much as this size needs, not as the largest one of all profiles would.
    std::unique_ptr<nvinfer1::IExecutionContext> context{
        engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED)};
    check(context != nullptr, "no execution context: too little memory on the GPU?");
    context->setNvtxVerbosity(nvinfer1::ProfilingVerbosity::kNONE);  // naming layers to profilers takes time
    check(context->setOptimizationProfileAsync(profile, stream) && context->setInputShape("image", size),
          input + ": TensorRT refuses this size");
    std::int64_t const activations = std::int64_t(context->updateDeviceMemorySizeForShapes());
    DeviceBuffer const memory(std::size_t(std::max<std::int64_t>(activations, 1)));
    context->setDeviceMemoryV2(memory.get(), activations);
    nvinfer1::Dims const shape = context->getTensorShape("logits");  // 1, classes, h, w
    check(shape.nbDims == 4 && shape.d[1] <= 256, "expected logits of at most 256 classes");

    std::vector<float> const tensor = normalise(image, mean_std);
    std::vector<float> logits(std::size_t(shape.d[1]) * shape.d[2] * shape.d[3]);
    DeviceBuffer const in(tensor.size() * sizeof(float)), out(logits.size() * sizeof(float));
    check(context->setTensorAddress("image", in.get()) && context->setTensorAddress("logits", out.get()),
          "TensorRT refuses the buffers");

    check(cudaMemcpyAsync(in.get(), tensor.data(), tensor.size() * sizeof(float), cudaMemcpyHostToDevice, stream), "copy");
    check(context->enqueueV3(stream), "the engine could not run");
    check(cudaMemcpyAsync(logits.data(), out.get(), logits.size() * sizeof(float), cudaMemcpyDeviceToHost, stream), "copy");
    check(cudaStreamSynchronize(stream), "the engine failed");

    std::vector<std::uint8_t> const mask = argmax(logits, int(shape.d[1]));
    std::ofstream file(output, std::ios::binary);
    file << "P5\n" << shape.d[3] << ' ' << shape.d[2] << "\n255\n";
    file.write(reinterpret_cast<char const*>(mask.data()), std::streamsize(mask.size()));
    check(bool(file.flush()), output + ": cannot be written");
    std::cout << output << ": " << shape.d[3] << " x " << shape.d[2] << ", " << shape.d[1] << " classes\n";
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4 && count != 10) {
        std::cerr << "usage: segment ENGINE INPUT.ppm OUTPUT.pgm [MEAN_R MEAN_G MEAN_B STD_R STD_G STD_B]\n";
        return 2;
    }
    std::array<float, 6> mean_std{127.5f, 127.5f, 127.5f, 127.5f, 127.5f, 127.5f};
    for (int i = 4; i < count; ++i) mean_std[i - 4] = std::strtof(arguments[i], nullptr);
    if (std::any_of(mean_std.begin() + 3, mean_std.end(), [](float std) { return !(std > 0); })) {
        std::cerr << "a standard deviation is not above 0\n";
        return 2;
    }
    try {
        run(arguments[1], arguments[2], arguments[3], mean_std);
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}
