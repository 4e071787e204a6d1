#include "bundle/decode.hpp"

#include <algorithm>
#include <cmath>

#include "system/text.hpp"

namespace denseport {
namespace {

constexpr int DEEPEST = 200;       // nested values; a manifest has ten, and a hostile one must not exhaust the stack
constexpr std::size_t SHOWN = 60;  // letters of a wrong value

// JSON with blanks after commas and colons, as Python writes it.
std::string spaced(const std::string& compact) {
    std::string text;
    bool in_string = false;
    for (std::size_t i = 0; i < compact.size(); ++i) {
        text += compact[i];
        if (in_string && compact[i] == '\\')
            text += compact[++i];
        else if (compact[i] == '"')
            in_string = !in_string;
        else if (!in_string && (compact[i] == ',' || compact[i] == ':'))
            text += ' ';
    }
    return text;
}

// Python's JSON also has the words NaN, Infinity and -Infinity, which figures may hold: they become texts.
std::string without_special_numbers(const std::string& text) {
    std::string clean;
    bool in_string = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (in_string && text[i] == '\\' && i + 1 < text.size()) {
            clean += text[i++];
        } else if (text[i] == '"') {
            in_string = !in_string;
        } else if (!in_string) {
            bool special = false;
            for (const std::string word : {"NaN", "Infinity", "-Infinity"})
                if (text.compare(i, word.size(), word) == 0) {
                    clean += '"' + word + '"';
                    i += word.size() - 1;
                    special = true;
                    break;
                }
            if (special) continue;
        }
        clean += text[i];
    }
    return clean;
}

}  // namespace

BundleError At::mistyped(const std::string& expected, const Json& found) const {
    std::string text = spaced(found.dump(-1, ' ', true));
    if (text.size() >= SHOWN) text = text.substr(0, SHOWN - 3) + "...";
    return error("expected " + expected + ", found " + text);
}

bool is_true(const Json& value) {
    if (value.is_boolean()) return value.get<bool>();
    if (value.is_number()) return value.get<double>() != 0;
    return value.is_string() ? !value.get<std::string>().empty() : !value.empty();  // null is empty
}

Json parse_json(const std::string& text, const std::string& file) {
    const auto refuse_depth = [&](int depth, Json::parse_event_t, Json&) {
        if (depth > DEEPEST) throw BundleError(file + ": not JSON: nested too deep", EXPORT_AGAIN);
        return true;
    };
    try {
        return Json::parse(without_special_numbers(text), refuse_depth);
    } catch (const Json::exception& error) {
        throw BundleError(file + ": not JSON: " + error.what(), EXPORT_AGAIN);
    }
}

Object::Object(const Json& value, At at, const char* type, const std::vector<std::string>& needed,
               const std::vector<std::string>& optional)
    : value_(value), at_(std::move(at)) {
    if (!value_.is_object()) throw at_.mistyped(type, value_);
    std::vector<std::string> missing, unknown;
    for (const std::string& name : needed)
        if (!value_.contains(name)) missing.push_back(name);
    for (const auto& [name, _] : value_.items())
        if (std::find(needed.begin(), needed.end(), name) == needed.end() &&
            std::find(optional.begin(), optional.end(), name) == optional.end())
            unknown.push_back(name);
    std::sort(missing.begin(), missing.end());
    if (!missing.empty()) throw at_.error("missing " + joined(missing));
    if (!unknown.empty()) throw at_.error("unknown " + joined(unknown));
}

void decode(const Json& value, const At& at, bool& out) {
    if (!value.is_boolean()) throw at.mistyped("bool", value);
    out = value.get<bool>();
}

void decode(const Json& value, const At& at, long long& out) {
    if (!value.is_number_integer()) throw at.mistyped("int", value);
    if (value.is_number_unsigned() && value.get<unsigned long long>() > (1ULL << 63) - 1)
        throw at.mistyped("a smaller number", "…");
    out = value.get<long long>();
}

void decode(const Json& value, const At& at, double& out) {
    if (!value.is_number()) throw at.mistyped("float", value);
    out = value.get<double>();
    if (!std::isfinite(out)) throw at.mistyped("a finite number", value);
}

void decode(const Json& value, const At& at, std::string& out) {
    if (!value.is_string()) throw at.mistyped("str", value);
    out = value.get<std::string>();
}

void check_one_of(const At& at, const std::string& name, const std::string& value,
                  const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), value) == known.end())
        throw at.error(name + " " + in_quotes(value) + " is not one of " + joined(known));
}

}  // namespace denseport
