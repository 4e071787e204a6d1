// What the model is, how images reach it, and which artifacts run it; as denseport.runtime.bundle.manifest.
// docs/bundle.md has it field by field.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle/artifact.hpp"
#include "bundle/preprocessing.hpp"

namespace denseport {

// How the network is moved over the resized image.
struct Inference {
    std::string mode = "whole";  // "whole" or "slide"
    std::optional<Pair> crop;    // slide: HEIGHT, WIDTH of a window, pixels of the resized image
    std::optional<Pair> stride;  // slide: rows, columns from one window to the next
};

// What every artifact takes: one float32 tensor.
struct NetworkInput {
    std::string name = "image";
    std::array<std::optional<long long>, 4> shape = {std::nullopt, 3, std::nullopt, std::nullopt};  // nothing: any
    long long divisor = 1;  // of height and width: other sizes are not taken
};

// What the numbers of a depth network mean, and how they are resized to the image.
struct DepthOutput {
    std::string unit, larger_is;    // as of `Depth`
    std::optional<double> largest;  // likewise
    std::string interpolation;      // to the image: "bilinear" or "bicubic"
};

struct Manifest {
    std::string name, architecture, source, task;
    long long patch_size = 1;  // pixels; a network input has at least one patch
    std::vector<Class> classes;
    Steps preprocess;
    Inference inference;
    NetworkInput input;
    std::optional<Augmentation> augmentation;
    bool align_corners = false;
    bool via_input = true;  // the logits are resized to the network's input, then to the image; false: to it at once
    std::optional<double> threshold;
    std::optional<DepthOutput> depth;  // of the task depth, and of it alone
    std::map<std::string, Artifact> artifacts;

    // Throws BundleError: no JSON, another format version, a field that is missing, unknown, mistyped or impossible.
    static Manifest from_json(const std::string& text, const std::string& file);
};

}  // namespace denseport
