#include "system/text.hpp"

#include <cctype>
#include <charconv>
#include <cstdio>

namespace denseport {

std::string joined(const std::vector<std::string>& parts, const std::string& between) {
    std::string all;
    for (const std::string& part : parts) all += (&part == &parts.front() ? "" : between) + part;
    return all;
}

std::string in_quotes(const std::string& text) {
    std::string found = "'";
    for (const char letter : text) {
        char code[8];
        std::snprintf(code, sizeof code, "\\x%02x", static_cast<unsigned char>(letter));
        if (letter == '\n')
            found += "\\n";
        else if (letter == '\t')
            found += "\\t";
        else if (letter == '\r')
            found += "\\r";
        else if (static_cast<unsigned char>(letter) < 0x20)
            found += code;
        else
            found += letter;
    }
    return found + "'";
}

std::string upper(std::string text) {
    for (char& letter : text) letter = char(std::toupper(static_cast<unsigned char>(letter)));
    return text;
}

std::string count(int number, const std::string& what) {
    return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

std::string number(double value) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    const std::string text(digits, end);
    return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

std::string fixed(double value, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
}

bool has_controls(const std::string& utf8) {
    for (std::size_t i = 0; i < utf8.size();) {
        const auto byte = static_cast<unsigned char>(utf8[i++]);
        unsigned long point = byte < 0x80 ? byte : byte < 0xE0 ? byte & 0x1F : byte < 0xF0 ? byte & 0x0F : byte & 0x07;
        while (i < utf8.size() && (static_cast<unsigned char>(utf8[i]) & 0xC0) == 0x80)
            point = point << 6 | (static_cast<unsigned char>(utf8[i++]) & 0x3F);
        if (point < 0x20 || (0x7F <= point && point < 0xA0) || point == 0x61C || point == 0x200E || point == 0x200F ||
            (0x2028 <= point && point <= 0x202E) || (0x2066 <= point && point <= 0x2069))
            return true;
    }
    return false;
}

bool is_out_of_memory(const std::string& message) {
    for (const char* words : {"bad_alloc", "Failed to allocate", "can't allocate memory", "not enough memory",
                              "Cannot allocate memory", "Insufficient memory"})
        if (message.find(words) != std::string::npos) return true;
    return false;
}

}  // namespace denseport
