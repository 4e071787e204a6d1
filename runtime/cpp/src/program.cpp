// The program denseport-cpp: `run` segments image files, or estimates their depth.
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
    "usage: denseport-cpp run BUNDLE IMAGE... -o OUTPUT [--format png|npy] [--artifact NAME] [--protocol NAME]\n"
    "                         [--threads N] [--trust FILE]... [--cache FOLDER] [--quiet]\n"
    "       denseport-cpp inspect BUNDLE [--artifact NAME] [--protocol NAME] [--trust FILE]...\n"
    "       denseport-cpp bench BUNDLE IMAGE [--artifact NAME] [--protocol NAME] [--threads N] [--cache FOLDER]\n"
    "\n"
    "run      writes masks, PNGs whose pixels are classes, or depths, PNGs of 16 bits or numpy's float32 (.npy): to\n"
    "         OUTPUT.png or .npy of one image, else to a folder with a file for each\n"
    "inspect  says which artifact runs here, on what and why, and why not the others\n"
    "bench    opens the bundle; then answers each line of standard input with the seconds of the image, or, where the\n"
    "         line is \"memory\", with the MiB that are resident\n"
    "\n"
    "  --format png|npy  of the files in a folder; default: png\n"
    "  --artifact NAME   which one runs; default: the best for this machine\n"
    "  --protocol NAME   how images reach the network; default: reference, as the checkpoint was tested\n"
    "  --threads N       default: the CPUs that the process may use\n"
    "  --trust FILE      a public key: its owner, or that of another one given, must have signed the bundle\n"
    "  --cache FOLDER    keep the weights there as ONNX Runtime lays them out here, and map them: less memory\n"
    "  --quiet           print nothing but errors\n";

struct Arguments {
    std::string command, bundle;
    std::vector<path> images;
    path output;
    std::string format = "png";
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
        else if (word == "--format")
            found.format = value();
        else if (word == "--artifact")
            found.options.artifact = value();
        else if (word == "--protocol")
            found.options.protocol = value();
        else if (word == "--threads")
            found.options.threads = whole_number(value());
        else if (word == "--trust")
            found.options.trust.push_back(value());
        else if (word == "--cache")
            found.options.cache = value();
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
    if (found.format != "png" && found.format != "npy") refuse("--format " + found.format + " is neither png nor npy");
    if (found.bundle.empty()) refuse(found.command + " needs a bundle");
    if (found.command == "run" && (found.images.empty() || found.output.empty()))
        refuse("run needs images, and -o OUTPUT");
    if (found.command == "bench" && found.images.size() != 1) refuse("bench needs one image");
    return found;
}

// Where the result of an image goes: of several images into a folder.
path target(const Arguments& arguments, const path& image) {
    const path ending = arguments.output.extension();
    if (arguments.images.size() == 1 && (ending == ".png" || ending == ".npy")) return arguments.output;
    std::error_code error;
    std::filesystem::create_directories(arguments.output, error);
    if (error)
        throw denseport::OutputError(arguments.output.string() + ": cannot be made: " + error.message(),
                                     "Choose a folder that you may write to.");
    return arguments.output / (image.stem().string() + "." + arguments.format);
}

// Without what acts on a terminal: bytes that are not UTF-8, control characters, and those that turn the direction of
// writing. A bundle's author could write them into a record.
std::string printable(const std::string& text) {
    std::string found;
    for (std::size_t i = 0; i < text.size();) {
        const auto first = static_cast<unsigned char>(text[i]);
        const std::size_t whole = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
        unsigned long point = first < 0x80 ? first : first & (0xFF >> (whole + 1));
        std::size_t length = 1;
        for (; length < whole && i + length < text.size() && (text[i + length] & 0xC0) == 0x80; ++length)
            point = point << 6 | (text[i + length] & 0x3F);
        const bool is_text = length == whole && (first < 0x80 || (0xC2 <= first && first < 0xF5));
        const bool acts = !is_text || (point < 0x20 && point != '\n') || (0x7F <= point && point < 0xA0) ||
                          point == 0x61C || (0x200E <= point && point <= 0x200F) ||
                          (0x2028 <= point && point <= 0x202E) || (0x2066 <= point && point <= 0x2069);
        found += acts ? "?" : text.substr(i, length);
        i += length;
    }
    return found;
}

void report(const denseport::Error& error) { std::cerr << "error: " << printable(error.what()) << '\n'; }

void save(const path& file, const denseport::Segmentation& found, const denseport::Segmenter& segment) {
    denseport::save_mask(file, found.mask, segment.classes());
}

void save(const path& file, const denseport::Depth& found, const denseport::DepthEstimator&) {
    denseport::save_depth(file, found);
}

cv::Size size_of(const denseport::Segmentation& found) { return found.mask.size(); }
cv::Size size_of(const denseport::Depth& found) { return found.depth.size(); }

std::string gives(const denseport::Segmenter& segment) { return std::to_string(segment.classes().size()) + " classes"; }
std::string gives(const denseport::DepthEstimator& estimate) {
    return "depth, " + estimate.unit() + ", larger is " + estimate.larger_is();
}

// The exit code; an image that fails does not keep the others from their results.
template <class Model>
int run(const Model& model, const Arguments& arguments) {
    if (!arguments.quiet) std::cerr << printable(model.description() + " (" + model.why() + ")\n");
    if (!model.caution().empty()) std::cerr << printable("caution: " + model.caution() + "\n");
    int code = 0;
    for (const path& image : arguments.images) {
        try {
            const auto found = model(image);
            const path file = target(arguments, image);
            save(file, found, model);
            const denseport::Timings& times = found.timings;
            if (!arguments.quiet)
                std::printf("%s: %d x %d, decode %.1f, preprocess %.1f, infer %.1f, postprocess %.1f ms\n",
                            file.string().c_str(), size_of(found).width, size_of(found).height, times.decode,
                            times.preprocess, times.infer, times.postprocess);
        } catch (const denseport::Error& error) {
            report(error);
            code = std::max(code, error.exit_code());
        }
    }
    return code;
}

template <class Model>
int inspect(const Model& model, const Arguments& arguments) {
    std::string said = model.name() + ": " + gives(model) + "\n";
    said += "runs: " + model.description() + " (" + model.why() + ")\n";
    if (!model.caution().empty()) said += "caution: " + model.caution() + "\n";
    if (!arguments.options.trust.empty())
        said += "signed by whom you trust\n";
    else if (std::filesystem::exists(path(arguments.bundle) / "model.sig"))
        said += "signed, not checked: --trust FILE checks whose public key signed it\n";
    for (const auto& [name, reason] : model.passed_over()) said += "not " + name + ": " + reason + "\n";
    std::cout << printable(said);
    return 0;
}

double resident_mib() {
    double whole = 0, resident = 0;  // pages
    std::ifstream("/proc/self/statm") >> whole >> resident;
    return resident * double(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

// As scripts/bench/cpp.py asks.
template <class Model>
int bench(const Model& model, const Arguments& arguments) {
    for (std::string line; std::getline(std::cin, line);) {
        const auto begin = std::chrono::steady_clock::now();
        if (line != "memory") model(arguments.images[0]);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        std::cout << (line == "memory" ? resident_mib() : seconds.count()) << std::endl;
    }
    return 0;
}

template <class Model>
int obey(const Arguments& arguments) {
    const Model model(arguments.bundle, arguments.options);
    if (arguments.command == "inspect") return inspect(model, arguments);
    return arguments.command == "run" ? run(model, arguments) : bench(model, arguments);
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
        const bool is_depth = denseport::task(arguments.bundle) == "depth";
        return is_depth ? obey<denseport::DepthEstimator>(arguments) : obey<denseport::Segmenter>(arguments);
    } catch (const denseport::Error& error) {
        report(error);
        return error.exit_code();
    } catch (const std::bad_alloc&) {
        report(denseport::MachineError("memory ran out", "Give smaller images, or free some memory."));
        return 3;
    }
}
