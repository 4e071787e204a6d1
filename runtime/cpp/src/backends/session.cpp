#include "backends/session.hpp"

#include <algorithm>

#include "system/text.hpp"

namespace denseport {

void check_logits(const std::filesystem::path& model, const Tensor& image, const std::vector<long long>& shape) {
    if (shape.size() != 4 || shape[0] != image.shape[0] || *std::min_element(shape.begin(), shape.end()) < 1)
        throw BundleError(
            model.string() + ": gave an array of " + listed(shape) + " for an input of " + listed(image.shape),
            EXPORT_AGAIN);
}

}  // namespace denseport
