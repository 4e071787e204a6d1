// JSON to structs, strictly: a missing, unknown or mistyped field is an error that names it; as
// denseport.runtime.bundle.decode.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "denseport/denseport.hpp"

namespace denseport {

using Json = nlohmann::json;

constexpr int LARGEST_SIDE =
    1 << 15;  // pixels that an image may be resized to: a hostile manifest must not ask for more
inline const std::string EXPORT_AGAIN = "Export or import it again.";

// Where a value stands, for messages.
struct At {
    std::string file;
    std::string field;  // "manifest.input.shape[0]"

    At operator/(const std::string& name) const { return {file, field + "." + name}; }
    At operator[](std::size_t index) const { return {file, field + "[" + std::to_string(index) + "]"}; }
    BundleError error(const std::string& what) const { return {file + ": " + field + ": " + what, EXPORT_AGAIN}; }
    BundleError mistyped(const std::string& expected, const Json& found) const;
};

bool is_true(const Json& value);  // as Python takes it

// Throws BundleError: no JSON, or nested deeper than any manifest.
Json parse_json(const std::string& text, const std::string& file);

// The fields of a JSON object.
class Object {
public:
    // Throws BundleError: no object (``type`` was expected), a needed field is missing, or one is neither needed nor
    // optional.
    Object(const Json& value, At at, const char* type, const std::vector<std::string>& needed,
           const std::vector<std::string>& optional = {});

    template <class T>
    T get(const std::string& name) const;
    template <class T>
    T get(const std::string& name, T otherwise) const;  // of an optional field
    const At& at() const { return at_; }

private:
    const Json& value_;
    At at_;
};

void decode(const Json& value, const At& at, bool& out);
void decode(const Json& value, const At& at, long long& out);
void decode(const Json& value, const At& at, double& out);
void decode(const Json& value, const At& at, std::string& out);
inline void decode(const Json& value, const At&, Json& out) { out = value; }

template <class T>
void decode(const Json& value, const At& at, std::optional<T>& out) {
    if (value.is_null())
        out.reset();
    else
        decode(value, at, out.emplace());
}

template <class T>
void decode(const Json& value, const At& at, std::vector<T>& out) {
    if (!value.is_array()) throw at.mistyped("tuple", value);
    out.clear();
    for (std::size_t i = 0; i < value.size(); ++i) {
        T each{};
        decode(value[i], at[i], each);
        out.push_back(std::move(each));
    }
}

template <class T, std::size_t N>
void decode(const Json& value, const At& at, std::array<T, N>& out) {
    if (!value.is_array()) throw at.mistyped("tuple", value);
    if (value.size() != N) throw at.mistyped(std::to_string(N) + " values", value);
    for (std::size_t i = 0; i < N; ++i) decode(value[i], at[i], out[i]);
}

template <class T>
void decode(const Json& value, const At& at, std::map<std::string, T>& out) {
    if (!value.is_object()) throw at.mistyped("dict", value);
    out.clear();
    for (const auto& [key, item] : value.items()) decode(item, at / key, out[key]);
}

template <class T>
T Object::get(const std::string& name) const {
    T out{};
    decode(value_.at(name), at_ / name, out);
    return out;
}

template <class T>
T Object::get(const std::string& name, T otherwise) const {
    return value_.contains(name) ? get<T>(name) : otherwise;
}

// Throws `at`'s error unless ``value`` is one of ``known``.
void check_one_of(const At& at, const std::string& name, const std::string& value,
                  const std::vector<std::string>& known);

}  // namespace denseport
