// The program denseport-cpp: `run` segments image files.
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include <opencv2/core.hpp>

#include "denseport/denseport.hpp"

namespace {

using std::filesystem::path;

constexpr const char* USAGE =
    "usage: denseport-cpp run BUNDLE IMAGE... -o OUTPUT [--artifact NAME] [--protocol NAME] [--threads N] [--quiet]\n"
    "       denseport-cpp inspect BUNDLE [--artifact NAME] [--protocol NAME]\n"
    "\n"
    "run      writes a mask, a PNG whose pixels are classes: OUTPUT.png of one image, else a folder with one for each\n"
    "inspect  says which artifact runs here, on what and why, and why not the others\n"
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
    if (found.command != "run" && found.command != "inspect")
        refuse("no command " + found.command + "; there are run and inspect");
    if (found.bundle.empty()) refuse(found.command + " needs a bundle");
    if (found.command == "run" && (found.images.empty() || found.output.empty()))
        refuse("run needs images, and -o OUTPUT");
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

void report(const denseport::Error& error) { std::cerr << "error: " << error.what() << '\n'; }

// The exit code; an image that cannot be segmented does not keep the others from it.
int run(const Arguments& arguments) {
    const denseport::Segmenter segment(arguments.bundle, arguments.options);
    if (!arguments.quiet) std::cerr << segment.description() << " (" << segment.why() << ")\n";
    if (!segment.caution().empty()) std::cerr << "caution: " << segment.caution() << '\n';
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
    std::cout << segment.name() << ": " << segment.classes().size() << " classes\n"
              << "runs: " << segment.description() << " (" << segment.why() << ")\n";
    if (!segment.caution().empty()) std::cout << "caution: " << segment.caution() << '\n';
    for (const auto& [name, reason] : segment.passed_over()) std::cout << "not " << name << ": " << reason << '\n';
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
        return arguments.command == "run" ? run(arguments) : inspect(arguments);
    } catch (const denseport::Error& error) {
        report(error);
        return error.exit_code();
    } catch (const std::bad_alloc&) {
        report(denseport::MachineError("memory ran out", "Give smaller images, or free some memory."));
        return 3;
    }
}
