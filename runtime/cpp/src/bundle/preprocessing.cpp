#include "bundle/preprocessing.hpp"

#include <algorithm>

#include "system/text.hpp"

namespace denseport {
namespace {

const std::vector<std::string> OPENCV = {"nearest", "bilinear", "bicubic", "area", "lanczos"};
const std::vector<std::string> PILLOW = {"nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"};
const std::vector<std::string> LIBRARIES = {"opencv", "pillow"};
const std::string SIDES = "1.." + std::to_string(LARGEST_SIDE);

bool are_sides(std::initializer_list<long long> sides) {
    return std::all_of(sides.begin(), sides.end(), [](long long side) { return 1 <= side && side <= LARGEST_SIDE; });
}

bool are_sides(const Pair& pair) { return are_sides({pair[0], pair[1]}); }

Sampling sampling(const Object& fields) {
    Sampling found{fields.get<std::string>("interpolation", "bilinear"), fields.get<std::string>("library", "opencv")};
    check_one_of(fields.at(), "library", found.library, LIBRARIES);
    check_one_of(fields.at(), found.library + "'s interpolation", found.interpolation,
                 found.library == "opencv" ? OPENCV : PILLOW);
    return found;
}

Load load(const Json& value, const At& at) {
    const Object fields(value, at, "Load", {}, {"kind", "orientation", "grey", "float32", "library"});
    Load step{fields.get("orientation", true), fields.get("grey", false), fields.get("float32", false),
              fields.get<std::string>("library", "opencv")};
    check_one_of(at, "library", step.library, LIBRARIES);
    return step;
}

Resize resize(const Json& value, const At& at) {
    const Object fields(value, at, "Resize", {"size", "keep_ratio"}, {"kind", "interpolation", "library"});
    Resize step{fields.get<Pair>("size"), fields.get<bool>("keep_ratio"), sampling(fields)};
    if (!are_sides(step.size))
        throw at.error("size " + listed(step.size) + " has a side that is not in " + SIDES + " pixels");
    return step;
}

ResizeBy resize_by(const Json& value, const At& at) {
    const Object fields(value, at, "ResizeBy", {"factor"},
                        {"kind", "keep_ratio", "round_down", "interpolation", "library"});
    ResizeBy step{fields.get<std::array<double, 2>>("factor"), fields.get("keep_ratio", false),
                  fields.get("round_down", false), sampling(fields)};
    for (const double factor : step.factor)
        if (!(0 < factor && factor <= LARGEST_SIDE))
            throw at.error("factor " + listed(step.factor) + " is not two positive numbers");
    return step;
}

ResizeShortestEdge resize_shortest_edge(const Json& value, const At& at) {
    const Object fields(value, at, "ResizeShortestEdge", {"shortest", "longest"}, {"kind", "interpolation", "library"});
    ResizeShortestEdge step{fields.get<long long>("shortest"), fields.get<long long>("longest"), sampling(fields)};
    if (!are_sides({step.shortest, step.longest}))
        throw at.error("shortest " + shown(step.shortest) + ", longest " + shown(step.longest) + ": not in " + SIDES +
                       " pixels");
    return step;
}

ResizeToMultiple resize_to_multiple(const Json& value, const At& at) {
    const Object fields(value, at, "ResizeToMultiple", {"divisor"}, {"kind", "interpolation", "library"});
    ResizeToMultiple step{fields.get<Pair>("divisor"), sampling(fields)};
    if (!are_sides(step.divisor)) throw at.error("divisor " + listed(step.divisor) + " is not in " + SIDES);
    return step;
}

ResizeRounded resize_rounded(const Json& value, const At& at) {
    const Object fields(value, at, "ResizeRounded", {"size", "rule"}, {"kind", "divisor", "interpolation", "library"});
    ResizeRounded step{fields.get<Pair>("size"), fields.get<std::string>("rule"), fields.get<long long>("divisor", 1),
                       sampling(fields)};
    check_one_of(at, "rule", step.rule, {"minimal", "lower_bound", "stretch"});
    if (!are_sides(step.size))
        throw at.error("size " + listed(step.size) + " has a side that is not in " + SIDES + " pixels");
    if (!are_sides({step.divisor})) throw at.error("divisor (" + shown(step.divisor) + ",) is not in " + SIDES);
    return step;
}

Pad pad(const Json& value, const At& at) {
    const Object fields(value, at, "Pad", {},
                        {"kind", "size", "divisor", "square", "value", "mode", "crop", "centred"});
    Pad step;
    step.size = fields.get<std::optional<Pair>>("size", std::nullopt);
    step.divisor = fields.get<std::optional<long long>>("divisor", std::nullopt);
    step.square = fields.get("square", false);
    step.value = fields.get("value", step.value);
    step.mode = fields.get("mode", step.mode);
    step.crop = fields.get("crop", false);
    step.centred = fields.get("centred", false);
    check_one_of(at, "mode", step.mode, {"constant", "edge", "reflect", "symmetric"});
    if (step.size && (step.divisor || step.square)) throw at.error("a pad has a size, or a divisor, or is square");
    if (!step.size && !step.divisor && !step.square) throw at.error("a pad needs a size or a divisor, or is square");
    if (step.size && !are_sides(*step.size))
        throw at.error("size " + listed(*step.size) + " has a side that is not in " + SIDES + " pixels");
    if (step.divisor && !are_sides({*step.divisor}))
        throw at.error("divisor (" + shown(*step.divisor) + ",) is not in " + SIDES);
    if (step.centred && step.crop) throw at.error("the logits of a centred pad are not cut off");
    return step;
}

Normalise normalise(const Json& value, const At& at) {
    const Object fields(value, at, "Normalise", {"mean", "std", "bgr_to_rgb"}, {"kind"});
    Normalise step{fields.get<std::vector<double>>("mean"), fields.get<std::vector<double>>("std"),
                   fields.get<bool>("bgr_to_rgb")};
    if (step.mean.size() != 1 && step.mean.size() != 3)
        throw at.error("mean " + listed(step.mean) + " is not three numbers");
    if (step.std.size() != step.mean.size() ||
        !std::all_of(step.std.begin(), step.std.end(), [](double each) { return each > 0; }))
        throw at.error("std " + listed(step.std) + " is not as many positive numbers");
    return step;
}

const std::vector<std::string> SCALES = {"resize", "resize_by", "resize_shortest_edge", "resize_rounded"};
const std::vector<std::string> KINDS = {
    "load", "resize", "resize_by", "resize_shortest_edge", "resize_to_multiple", "resize_rounded", "pad", "normalise"};

Step step_of(const Json& value, const At& at, const std::vector<std::string>& kinds) {
    if (!value.is_object()) throw at.mistyped("an object of kind " + joined(kinds), value);
    const Json kind = value.value("kind", Json());
    if (!kind.is_string() || std::find(kinds.begin(), kinds.end(), kind.get<std::string>()) == kinds.end())
        throw(at / "kind").mistyped("one of " + joined(kinds), kind);
    if (kind == "load") return load(value, at);
    if (kind == "resize") return resize(value, at);
    if (kind == "resize_by") return resize_by(value, at);
    if (kind == "resize_shortest_edge") return resize_shortest_edge(value, at);
    if (kind == "resize_to_multiple") return resize_to_multiple(value, at);
    if (kind == "resize_rounded") return resize_rounded(value, at);
    if (kind == "pad") return pad(value, at);
    return normalise(value, at);
}

Steps::const_iterator normalising(const Steps& steps) {
    return std::find_if(steps.begin(), steps.end(),
                        [](const Step& step) { return std::holds_alternative<Normalise>(step); });
}

}  // namespace

void decode(const Json& value, const At& at, Step& out) { out = step_of(value, at, KINDS); }

void decode(const Json& value, const At& at, Augmentation& out) {
    const Object fields(value, at, "Augmentation", {"scales", "flip"});
    const Json scales = fields.get<Json>("scales");
    if (!scales.is_array()) throw(at / "scales").mistyped("tuple", scales);
    out.scales.clear();
    for (std::size_t i = 0; i < scales.size(); ++i)
        out.scales.push_back(step_of(scales[i], (at / "scales")[i], SCALES));
    out.flip = fields.get<bool>("flip");
    if (out.scales.empty()) throw at.error("an augmentation has at least one scale");
}

void check_steps(const Steps& steps, const At& at) {
    const auto is_load = [](const Step& step) { return std::holds_alternative<Load>(step); };
    const auto is_normalise = [](const Step& step) { return std::holds_alternative<Normalise>(step); };
    const auto loads = std::count_if(steps.begin(), steps.end(), is_load);
    if (std::count_if(steps.begin(), steps.end(), is_normalise) != 1 || loads > 1 || (loads == 1 && !is_load(steps[0])))
        throw at.error("preprocess needs at most one load, which is first, and one normalise");
    for (auto step = normalising(steps) + 1; step != steps.end(); ++step) {
        const Pad* pad = std::get_if<Pad>(&*step);
        if (!pad || pad->mode != "constant")
            throw at.error("preprocess: after normalise comes nothing but pads of mode constant");
    }
    for (const Step& step : size_steps(steps))
        if (const Sampling* each = sampling_of(step); each && each->library == "pillow" && loading(steps).float32)
            throw at.error("preprocess: Pillow does not resize images of float32");
}

const Sampling* sampling_of(const Step& step) {
    return std::visit(
        [](const auto& each) -> const Sampling* {
            using Kind = std::decay_t<decltype(each)>;
            if constexpr (std::is_same_v<Kind, Load> || std::is_same_v<Kind, Pad> || std::is_same_v<Kind, Normalise>)
                return nullptr;
            else
                return &each.sampling;
        },
        step);
}

bool is_scale(const Step& step) { return sampling_of(step) && !std::holds_alternative<ResizeToMultiple>(step); }

Load loading(const Steps& steps) {
    const Load* load = steps.empty() ? nullptr : std::get_if<Load>(&steps[0]);
    return load ? *load : Load{};
}

const Normalise& normalisation(const Steps& steps) { return std::get<Normalise>(*normalising(steps)); }

Steps size_steps(const Steps& steps) {
    Steps found;
    for (auto step = steps.begin(); step != normalising(steps); ++step)
        if (!std::holds_alternative<Load>(*step)) found.push_back(*step);
    return found;
}

std::vector<Pad> paddings(const Steps& steps) {
    std::vector<Pad> found;
    for (auto step = normalising(steps) + 1; step != steps.end(); ++step) found.push_back(std::get<Pad>(*step));
    return found;
}

std::optional<Step> resizing(const Steps& steps) {
    const auto found = std::find_if(steps.begin(), steps.end(), is_scale);
    return found == steps.end() ? std::nullopt : std::optional<Step>(*found);
}

Steps with_resize(const Steps& steps, const Step& resize) {
    Steps found = steps;
    const auto old = std::find_if(found.begin(), found.end(), is_scale);
    if (old != found.end())
        *old = resize;
    else
        found.insert(found.begin() + (!found.empty() && std::holds_alternative<Load>(found[0])), resize);
    return found;
}

Steps without_resize(const Steps& steps) {
    Steps found;
    for (const Step& step : steps)
        if (!sampling_of(step)) found.push_back(step);
    return found;
}

Steps of_one_size(const Steps& steps, const Pair& size) {
    Steps kept;
    for (const Step& step : steps)
        if (std::holds_alternative<Load>(step) || std::holds_alternative<Normalise>(step)) kept.push_back(step);
    const std::optional<Step> old = resizing(steps);
    return with_resize(kept, Resize{size, false, old ? *sampling_of(*old) : Sampling{}});
}

}  // namespace denseport
