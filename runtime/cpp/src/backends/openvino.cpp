// Runs an ONNX artifact with OpenVINO, on the CPU; as denseport.runtime.backends.openvino.
#include <condition_variable>
#include <cstring>
#include <mutex>

#include <openvino/openvino.hpp>

#include "backends/openvino_weights.hpp"
#include "backends/session.hpp"
#include "system/cpus.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

using std::filesystem::path;

constexpr int REQUESTS = 2;  // images at a time: one computes on all threads, one is before or behind it
const std::string ON_ONNXRUNTIME = "Run model.onnx on ONNX Runtime.";

std::string version() {
    const std::string whole = ov::get_openvino_version().buildNumber;
    return whole.substr(0, whole.find('-'));
}

// A precision as OpenVINO calls it.
ov::element::Type type_of(const std::string& precision) {
    return precision == "bf16" ? ov::element::bf16 : ov::element::f32;
}

ov::AnyMap settings(const std::string& precision, int threads) {
    return {
        ov::hint::inference_precision(type_of(precision)),  // its own default is BF16 wherever there is such arithmetic
        ov::inference_num_threads(threads),
        ov::num_streams(1),                      // all threads for one image
        ov::hint::enable_hyper_threading(true),  // as many threads as asked for, be they two of one core
        ov::hint::enable_cpu_pinning(false),     // which binds several processes to the same processors
        // Its default quantizes float activations on the way to a linear layer whose weight is stored in INT8.
        ov::hint::dynamic_quantization_group_size(0),
    };
}

class OpenVinoSession final : public Session {
public:
    OpenVinoSession(const path& model, const Artifact& artifact, int threads)
        : model_(model), precision_(artifact.float_precision), threads_(threads), quantized_(artifact.is_quantized()) {
        try {
            ov::Core core;
            const std::shared_ptr<ov::Model> read = core.read_model(model.string());
            const std::shared_ptr<const Mapped> weights = share_weights(*read, model);
            compiled_ = core.compile_model(read, "CPU", settings(precision_, threads));
            weights->let_go();
            refuse_other_interfaces();
            for (int i = 0; i < REQUESTS; ++i) idle_.push_back(compiled_.create_infer_request());
        } catch (const std::exception& error) {
            if (dynamic_cast<const Error*>(&error)) throw;
            if (is_out_of_memory(error.what()))
                throw MachineError(model.string() + ": memory ran out when it was opened", FREE_MEMORY);
            throw BundleError(model.string() + ": OpenVINO cannot load it: " + error.what(), ON_ONNXRUNTIME);
        }
        const ov::element::Type computes = compiled_.get_property(ov::hint::inference_precision);
        if (computes != type_of(precision_))
            throw MachineError(model.string() + ": OpenVINO " + version() + " computes in " + computes.to_string() +
                                   " here, not in " + type_of(precision_).to_string(),
                               ON_ONNXRUNTIME);
    }

    Tensor run(const Tensor& image) const override {
        Taken request(*this);
        try {
            // It only reads the image, whose memory lives as long as the call.
            const ov::Shape shape(image.shape.begin(), image.shape.end());
            request->set_input_tensor(ov::Tensor(ov::element::f32, shape, const_cast<float*>(image.values.data())));
            request->infer();
            const ov::Tensor found = request->get_output_tensor(0);
            const ov::Shape sizes = found.get_shape();
            Tensor result{{sizes.begin(), sizes.end()}, {}};
            check_logits(model_, image, result.shape);
            const float* values = found.data<float>();
            result.values.assign(values, values + found.get_size());
            return result;
        } catch (const std::exception& error) {
            if (dynamic_cast<const Error*>(&error)) throw;
            if (is_out_of_memory(error.what()))
                throw MachineError(model_.string() + ": memory ran out on an input of " + listed(image.shape),
                                   FREE_MEMORY);
            throw BundleError(model_.string() + ": OpenVINO cannot run it on an input of " + listed(image.shape) +
                                  ": " + error.what(),
                              "Give an image of another size, or run model.onnx on ONNX Runtime.");
        }
    }

    std::string description() const override {
        return "OpenVINO " + version() + ", CPU, " + (quantized_ ? "INT8 and " : "") + upper(precision_) + ", " +
               count(threads_, "thread");
    }

private:
    // One of the requests, for one image; others wait.
    class Taken {
    public:
        explicit Taken(const OpenVinoSession& session) : session_(session) {
            std::unique_lock<std::mutex> lock(session.mutex_);
            session.freed_.wait(lock, [&] { return !session.idle_.empty(); });
            request_ = std::move(session.idle_.back());
            session.idle_.pop_back();
        }
        ~Taken() {
            {
                const std::lock_guard<std::mutex> lock(session_.mutex_);
                session_.idle_.push_back(std::move(request_));
            }
            session_.freed_.notify_one();
        }
        Taken(const Taken&) = delete;
        Taken& operator=(const Taken&) = delete;
        ov::InferRequest* operator->() { return &request_; }

    private:
        const OpenVinoSession& session_;
        ov::InferRequest request_;
    };

    // One image batch in, logits out.
    void refuse_other_interfaces() const {
        const auto is_usual = [](const ov::Output<const ov::Node>& value) {
            return value.get_element_type() == ov::element::f32 && value.get_partial_shape().rank() == 4;
        };
        const auto& inputs = compiled_.inputs();
        if (inputs.size() != 1 || inputs[0].get_names().count("image") == 0 || !is_usual(inputs[0]) ||
            compiled_.outputs().empty() || !is_usual(compiled_.outputs()[0]))
            throw BundleError(model_.string() + ": takes or gives other tensors than a segmentation network",
                              "Export it again.");
    }

    path model_;
    std::string precision_;
    int threads_;
    bool quantized_;
    ov::CompiledModel compiled_;
    mutable std::mutex mutex_;
    mutable std::condition_variable freed_;
    mutable std::vector<ov::InferRequest> idle_;
};

}  // namespace

std::unique_ptr<Session> open_openvino(const path& model, const Artifact& artifact, int threads) {
    return std::make_unique<OpenVinoSession>(model, artifact, threads);
}

}  // namespace denseport
