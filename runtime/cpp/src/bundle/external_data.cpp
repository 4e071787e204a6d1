// Only lengths are read from the protobuf; weights are skipped. Source of the field numbers: onnx.proto3 of ONNX 1.20;
// of the wire format: https://protobuf.dev/programming-guides/encoding.
#include "bundle/external_data.hpp"

#include <cstdint>
#include <map>

namespace denseport {
namespace {

enum Message { MODEL, TRAINING, FUNCTION, GRAPH, NODE, ATTRIBUTE, SPARSE, TENSOR, ENTRY };
// The messages on the way from a model to its tensors: which field of each holds which message.
const std::map<std::pair<Message, std::uint64_t>, Message> FIELDS = {
    {{MODEL, 7}, GRAPH},       {{MODEL, 20}, TRAINING},   {{MODEL, 25}, FUNCTION},     {{TRAINING, 1}, GRAPH},
    {{TRAINING, 2}, GRAPH},    {{FUNCTION, 7}, NODE},     {{FUNCTION, 11}, ATTRIBUTE}, {{GRAPH, 1}, NODE},
    {{GRAPH, 5}, TENSOR},      {{GRAPH, 15}, SPARSE},     {{NODE, 5}, ATTRIBUTE},      {{ATTRIBUTE, 5}, TENSOR},
    {{ATTRIBUTE, 6}, GRAPH},   {{ATTRIBUTE, 10}, TENSOR}, {{ATTRIBUTE, 11}, GRAPH},    {{ATTRIBUTE, 22}, SPARSE},
    {{ATTRIBUTE, 23}, SPARSE}, {{SPARSE, 1}, TENSOR},     {{SPARSE, 2}, TENSOR},       {{TENSOR, 13}, ENTRY},
};
constexpr std::uint64_t RAW_DATA = 9;        // of a tensor
constexpr std::uint64_t KEY = 1, VALUE = 2;  // of an entry
constexpr std::uint64_t LARGEST_TAG = 0xFFFFFFFF;

// A field that holds bytes.
struct Field {
    std::uint64_t number;
    std::size_t begin, end;
};

class Reader {
public:
    Reader(const unsigned char* data, std::size_t at, std::size_t stop) : data_(data), at_(at), stop_(stop) {}

    // Fills in the next field that holds bytes; false at the end.
    bool next(Field& field) {
        while (at_ < stop_) {
            const std::uint64_t tag = varint(), number = tag >> 3, wire = tag & 7;
            if (number == 0 || tag > LARGEST_TAG) throw no_message(at_);
            if (wire == 2) {
                const std::uint64_t length = varint();
                const std::size_t begin = at_;
                skip(length);
                field = {number, begin, at_};
                return true;
            }
            if (wire == 0)
                varint();
            else if (wire == 1)
                skip(8);
            else if (wire == 5)
                skip(4);
            else
                throw no_message(at_);
        }
        return false;
    }

private:
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (int shift = 0; shift < 70; shift += 7) {
            if (at_ >= stop_) break;
            const unsigned char byte = data_[at_++];
            if (shift < 64) value |= std::uint64_t(byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        throw NotProtobuf("no number at byte " + std::to_string(at_));
    }

    void skip(std::uint64_t bytes) {
        if (bytes > stop_ - at_) throw NotProtobuf("cut short at byte " + std::to_string(stop_));
        at_ += bytes;
    }

    static NotProtobuf no_message(std::size_t at) {
        return NotProtobuf("no protobuf message at byte " + std::to_string(at));
    }

    const unsigned char* data_;
    std::size_t at_, stop_;
};

struct Found {
    std::set<std::string> files;
    std::vector<Range> weights;
};

Found read(const unsigned char* data, std::size_t size) {
    if (size == 0) throw NotProtobuf("the file is empty");
    struct Part {
        Message message;
        std::size_t begin, end;
    };
    Found found;
    std::vector<Part> left = {{MODEL, 0, size}};  // a hostile file may nest graphs deeper than the stack
    while (!left.empty()) {
        const Part part = left.back();
        left.pop_back();
        Reader reader(data, part.begin, part.end);
        std::string key, value;
        for (Field field{}; reader.next(field);) {
            if (part.message == ENTRY) {
                const std::string text(reinterpret_cast<const char*>(data) + field.begin, field.end - field.begin);
                if (field.number == KEY) key = text;
                if (field.number == VALUE) value = text;
            } else if (part.message == TENSOR && field.number == RAW_DATA) {
                found.weights.push_back({field.begin, field.end});
            } else if (const auto known = FIELDS.find({part.message, field.number}); known != FIELDS.end()) {
                left.push_back({known->second, field.begin, field.end});
            }
        }
        if (part.message == ENTRY && key == "location") found.files.insert(value);
    }
    return found;
}

}  // namespace

std::set<std::string> external_files(const unsigned char* data, std::size_t size) { return read(data, size).files; }

std::vector<Range> stored_weights(const unsigned char* data, std::size_t size) { return read(data, size).weights; }

}  // namespace denseport
