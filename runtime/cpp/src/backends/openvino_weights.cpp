#include "backends/openvino_weights.hpp"

#include <cstring>
#include <map>

#include <openvino/core/graph_util.hpp>
#include <openvino/core/rt_info.hpp>
#include <openvino/op/constant.hpp>

#include "bundle/external_data.hpp"

namespace denseport {
namespace {

using ov::op::v0::Constant;

constexpr std::size_t LARGE = 1 << 16;  // bytes; smaller ones are not worth a search

// Where equal bytes lie in the file; null: nowhere.
const unsigned char* find(const Constant& constant, const std::multimap<std::size_t, const unsigned char*>& stored) {
    const auto [begin, end] = stored.equal_range(constant.get_byte_size());
    for (auto each = begin; each != end; ++each)
        if (std::memcmp(each->second, constant.get_data_ptr(), each->first) == 0) return each->second;
    return nullptr;
}

}  // namespace

std::shared_ptr<const Mapped> share_weights(ov::Model& model, const std::filesystem::path& file) {
    const auto mapped = std::make_shared<Mapped>(file);
    std::multimap<std::size_t, const unsigned char*> stored;  // by size
    for (const Range& range : stored_weights(mapped->data(), mapped->size()))
        stored.emplace(range.end - range.begin, mapped->data() + range.begin);
    for (const std::shared_ptr<ov::Node>& node : model.get_ordered_ops()) {
        const auto constant = std::dynamic_pointer_cast<Constant>(node);
        if (!constant || constant->get_element_type() == ov::element::string || constant->get_byte_size() < LARGE)
            continue;
        const unsigned char* data = find(*constant, stored);
        if (!data) continue;
        const auto shared =
            std::make_shared<Constant>(constant->get_element_type(), constant->get_shape(), data, mapped);
        shared->set_friendly_name(constant->get_friendly_name());
        ov::copy_runtime_info(constant, shared);
        ov::replace_node(constant, shared);
    }
    return mapped;
}

}  // namespace denseport
