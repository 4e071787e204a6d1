// What is done to an image before the network sees it: a list of steps; as denseport.runtime.bundle.steps and
// .preprocessing. Sizes of images are height, width (`Size`); sizes and factors in a step are width, height.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bundle/decode.hpp"

namespace denseport {

struct Size {
    long long height = 0, width = 0;  // pixels
    bool operator==(const Size& other) const { return height == other.height && width == other.width; }
};

using Pair = std::array<long long, 2>;  // of width, of height

// How a file becomes an image.
struct Load {
    bool orientation = true;  // turned as its EXIF data says
    bool grey = false;        // without colours; three equal channels
    bool float32 = false;     // resized as float32, not rounded to grey levels again
    std::string library = "opencv";
};

// How a resize samples.
struct Sampling {
    std::string interpolation = "bilinear", library = "opencv";
};

struct Resize {
    Pair size{};  // with keep_ratio: limits of the longer and the shorter side
    bool keep_ratio = false;
    Sampling sampling;
};

struct ResizeBy {
    std::array<double, 2> factor{};
    bool keep_ratio = false, round_down = false;
    Sampling sampling;
};

struct ResizeShortestEdge {
    long long shortest = 0, longest = 0;
    Sampling sampling;
};

// Towards a size, each side to the nearest multiple of a number, half to even; as DPT and Depth Anything.
struct ResizeRounded {
    Pair size{};
    std::string rule;  // both sides by the factor nearer to 1 ("minimal") or the larger ("lower_bound"); else "stretch"
    long long divisor = 1;
    Sampling sampling;
};

struct ResizeToMultiple {
    Pair divisor{};
    Sampling sampling;
};

// Pixels that are added.
struct Pad {
    std::optional<Pair> size;
    std::optional<long long> divisor;
    bool square = false;
    std::array<double, 3> value{};  // of each channel, in the order that it has at this step
    std::string mode = "constant";
    bool crop = false;     // the logits of what was added are cut off, before they are resized to the image
    bool centred = false;  // half of them at the left and at the top; else all at the right and at the bottom

    Size output(Size size) const;
    Size before(const Size& size) const;  // pixels at the top (height) and at the left (width)
};

// (level - mean) / std, in the network's order of channels; three, or one of grey images.
struct Normalise {
    std::vector<double> mean, std;
    bool bgr_to_rgb = false;
};

using Step = std::variant<Load, Resize, ResizeBy, ResizeShortestEdge, ResizeToMultiple, ResizeRounded, Pad, Normalise>;
using Steps = std::vector<Step>;

// Several views of an image, whose probabilities are averaged: one of each scale, and each mirrored too.
struct Augmentation {
    std::vector<Step> scales;  // each takes the place of the first resize
    bool flip = false;
};

void decode(const Json& value, const At& at, Step& out);
void decode(const Json& value, const At& at, Augmentation& out);

void check_steps(const Steps& steps, const At& at);  // they can be carried out
const Sampling* sampling_of(const Step& step);       // of a resize; null of any other step
bool is_scale(const Step& step);                     // it chooses the size at which the network sees an image

Load loading(const Steps& steps);
const Normalise& normalisation(const Steps& steps);
Steps size_steps(const Steps& steps);           // those that change the size, before normalising
std::vector<Pad> paddings(const Steps& steps);  // those behind it

// The size after a size step. Throws ImageError: a side beyond `LARGEST_SIDE`, or of no pixels.
Size output_size(const Size& size, const Step& step);
// How a step says what it does, for people.
std::string words(const Step& step);

std::optional<Step> resizing(const Steps& steps);  // the step that chooses the size
Steps with_resize(const Steps& steps, const Step& resize);
Steps without_resize(const Steps& steps);
Steps of_one_size(const Steps& steps, const Pair& size);  // one resize, sampled as before, and no pads
Step scaled(const Step& step, double ratio);              // of multi-scale testing

}  // namespace denseport
