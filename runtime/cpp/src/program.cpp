// The program denseport-cpp: `run` segments image files.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>

#include <opencv2/core.hpp>

#include "denseport/denseport.hpp"

namespace {

using std::filesystem::path;

constexpr const char* USAGE =
    "usage: denseport-cpp run BUNDLE IMAGE... -o OUTPUT [--artifact NAME] [--protocol NAME] [--threads N] [--quiet]\n"
    "       denseport-cpp inspect BUNDLE [--artifact NAME] [--protocol NAME]\n"
    "       denseport-cpp bench BUNDLE IMAGE [--artifact NAME] [--protocol NAME] [--threads N]\n"
    "\n"
    "run      writes a mask, a PNG whose pixels are classes: OUTPUT.png of one image, else a folder with one for each\n"
    "inspect  says which artifact runs here, on what and why, and why not the others\n"
    "bench    opens the bundle; then answers each line of standard input with the seconds of the image, or, where the\n"
    "         line is \"memory\", with the MiB that are resident\n"
    "\n"
    "  --artifact NAME   which one runs; default: the best for this machine\n"
    "  --protocol NAME   how images reach the network; default: reference, as the checkpoint was tested\n"
    "  --threads N       default: the CPUs that the process may use\n"
    "  --quiet           print nothing but errors\n";

struct Arguments {
    std::string command, bundle;
    std::vector<path> images;
    path output;
    denseport::Options options;
    bool quiet = false;
};

[[noreturn]] void refuse(const std::string& message) { throw denseport::InputError(message, "denseport-cpp --help"); }

int whole_number(const std::string& text) {
    char* end = nullptr;
    const long value = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || value < 1 || value > 1024) refuse("--threads " + text + " is not in 1..1024");
    return int(value);
}

Arguments parse(const std::vector<std::string>& given) {
    Arguments found;
    for (std::size_t i = 0; i < given.size(); ++i) {
        const std::string& word = given[i];
        const auto value = [&]() -> const std::string& {
            if (i + 1 == given.size()) refuse(word + " needs a value");
            return given[++i];
        };
        if (word == "-o" || word == "--output")
            found.output = value();
        else if (word == "--artifact")
            found.options.artifact = value();
        else if (word == "--protocol")
            found.options.protocol = value();
        else if (word == "--threads")
            found.options.threads = whole_number(value());
        else if (word == "--quiet")
            found.quiet = true;
        else if (word.size() > 1 && word[0] == '-')
            refuse("there is no option " + word);
        else if (found.command.empty())
            found.command = word;
        else if (found.bundle.empty())
            found.bundle = word;
        else
            found.images.push_back(word);
    }
    if (found.command != "run" && found.command != "inspect" && found.command != "bench")
        refuse("no command " + found.command + "; there are run, inspect and bench");
    if (found.bundle.empty()) refuse(found.command + " needs a bundle");
    if (found.command == "run" && (found.images.empty() || found.output.empty()))
        refuse("run needs images, and -o OUTPUT");
    if (found.command == "bench" && found.images.size() != 1) refuse("bench needs one image");
    return found;
}

// Where the mask of an image goes: of several images into a folder.
path target(const Arguments& arguments, const path& image) {
    if (arguments.images.size() == 1 && arguments.output.extension() == ".png") return arguments.output;
    std::error_code error;
    std::filesystem::create_directories(arguments.output, error);
    if (error)
        throw denseport::OutputError(arguments.output.string() + ": cannot be made: " + error.message(),
                                     "Choose a folder that you may write to.");
    return arguments.output / (image.stem().string() + ".png");
}

// Without what acts on a terminal: control characters, and those that turn the direction of writing. A bundle's author
// could write them into a record.
std::string printable(const std::string& text) {
    std::string found;
    for (std::size_t i = 0; i < text.size();) {
        const auto first = static_cast<unsigned char>(text[i]);
        unsigned long point = first < 0x80 ? first : first & (first < 0xE0 ? 0x1F : 0x0F);
        std::size_t length = 1;
        for (; i + length < text.size() && (text[i + length] & 0xC0) == 0x80; ++length)
            point = point << 6 | (text[i + length] & 0x3F);
        const bool acts = (point < 0x20 && point != '\n') || (0x7F <= point && point < 0xA0) || point == 0x61C ||
                          (0x200E <= point && point <= 0x200F) || (0x2028 <= point && point <= 0x202E) ||
                          (0x2066 <= point && point <= 0x2069);
        found += acts ? "?" : text.substr(i, length);
        i += length;
    }
    return found;
}

void report(const denseport::Error& error) { std::cerr << "error: " << printable(error.what()) << '\n'; }

// The exit code; an image that cannot be segmented does not keep the others from it.
int run(const Arguments& arguments) {
    const denseport::Segmenter segment(arguments.bundle, arguments.options);
    if (!arguments.quiet) std::cerr << printable(segment.description() + " (" + segment.why() + ")\n");
    if (!segment.caution().empty()) std::cerr << printable("caution: " + segment.caution() + "\n");
    int code = 0;
    for (const path& image : arguments.images) {
        try {
            const denseport::Segmentation found = segment(image);
            const path file = target(arguments, image);
            denseport::save_mask(file, found.mask, segment.classes());
            const denseport::Timings& times = found.timings;
            if (!arguments.quiet)
                std::printf("%s: %d x %d, decode %.1f, preprocess %.1f, infer %.1f, postprocess %.1f ms\n",
                            file.string().c_str(), found.mask.cols, found.mask.rows, times.decode, times.preprocess,
                            times.infer, times.postprocess);
        } catch (const denseport::Error& error) {
            report(error);
            code = std::max(code, error.exit_code());
        }
    }
    return code;
}

int inspect(const Arguments& arguments) {
    const denseport::Segmenter segment(arguments.bundle, arguments.options);
    std::string said = segment.name() + ": " + std::to_string(segment.classes().size()) + " classes\n";
    said += "runs: " + segment.description() + " (" + segment.why() + ")\n";
    if (!segment.caution().empty()) said += "caution: " + segment.caution() + "\n";
    for (const auto& [name, reason] : segment.passed_over()) said += "not " + name + ": " + reason + "\n";
    std::cout << printable(said);
    return 0;
}

double resident_mib() {
    double whole = 0, resident = 0;  // pages
    std::ifstream("/proc/self/statm") >> whole >> resident;
    return resident * double(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

// As scripts/bench/cpp.py asks.
int bench(const Arguments& arguments) {
    const denseport::Segmenter segment(arguments.bundle, arguments.options);
    for (std::string line; std::getline(std::cin, line);) {
        const auto begin = std::chrono::steady_clock::now();
        if (line != "memory") segment(arguments.images[0]);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        std::cout << (line == "memory" ? resident_mib() : seconds.count()) << std::endl;
    }
    return 0;
}

}  // namespace

int main(int count, char** words) {
    const std::vector<std::string> given(words + 1, words + count);
    if (given.empty() || given[0] == "--help" || given[0] == "-h") {
        std::cout << USAGE;
        return given.empty() ? 2 : 0;
    }
    try {
        const Arguments arguments = parse(given);
        if (arguments.command == "bench") return bench(arguments);
        return arguments.command == "run" ? run(arguments) : inspect(arguments);
    } catch (const denseport::Error& error) {
        report(error);
        return error.exit_code();
    } catch (const std::bad_alloc&) {
        report(denseport::MachineError("memory ran out", "Give smaller images, or free some memory."));
        return 3;
    }
}
