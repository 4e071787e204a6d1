// Small pieces of text for messages, as Python's runtime writes them.
#pragma once

#include <string>
#include <vector>

namespace denseport {

std::string joined(const std::vector<std::string>& parts, const std::string& between = ", ");
std::string in_quotes(const std::string& text);  // 'text'
std::string upper(std::string text);
std::string count(int number, const std::string& what);  // "1 thread", "2 threads"
std::string number(double value);  // the shortest that reads back the same, "2.0" of whole numbers
std::string fixed(double value, int digits);
bool has_controls(const std::string& utf8);         // characters that move the cursor or turn the direction of writing
bool is_out_of_memory(const std::string& message);  // of a library

template <class Values>
std::string listed(const Values& values);  // "(1, 2)"

inline std::string shown(double value) { return number(value); }
inline std::string shown(int value) { return std::to_string(value); }
inline std::string shown(long value) { return std::to_string(value); }
inline std::string shown(long long value) { return std::to_string(value); }

template <class Values>
std::string listed(const Values& values) {
    std::vector<std::string> parts;
    for (const auto& value : values) parts.push_back(shown(value));
    return "(" + joined(parts) + (parts.size() == 1 ? ",)" : ")");
}

}  // namespace denseport
