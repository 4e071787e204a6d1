#include "bundle/manifest.hpp"

#include <algorithm>
#include <cctype>

#include "system/text.hpp"

namespace denseport {
namespace {

constexpr int FORMAT_VERSION = 2;
constexpr std::size_t MOST_CLASSES = 65536;  // masks have 16 bits
const std::string SIDES = "1.." + std::to_string(LARGEST_SIDE);

bool is_side(long long side) { return 1 <= side && side <= LARGEST_SIDE; }

std::string python_bool(bool value) { return value ? "True" : "False"; }

std::string repr(const Json& value) {
    if (value.is_null()) return "None";
    if (value.is_string()) return in_quotes(value.get<std::string>());
    return value.is_boolean() ? python_bool(value.get<bool>()) : value.dump();
}

std::string repr(const std::array<std::optional<long long>, 4>& shape) {
    std::vector<std::string> sizes;
    for (const auto& size : shape) sizes.push_back(size ? shown(*size) : "None");
    return "(" + joined(sizes) + ")";
}

}  // namespace

// Found through the namespace by the templates of decode.hpp.
void decode(const Json& value, const At& at, Inference& out) {
    const Object fields(value, at, "Inference", {}, {"mode", "crop", "stride"});
    out.mode = fields.get<std::string>("mode", "whole");
    out.crop = fields.get<std::optional<Pair>>("crop", std::nullopt);
    out.stride = fields.get<std::optional<Pair>>("stride", std::nullopt);
    if (out.mode != "whole" && out.mode != "slide")
        throw at.error("mode " + in_quotes(out.mode) + " is neither 'whole' nor 'slide'");
    if (out.mode == "slide" && !(out.crop && out.stride)) throw at.error("mode 'slide' needs crop and stride");
    if (out.mode == "whole" && (out.crop || out.stride)) throw at.error("mode 'whole' has neither crop nor stride");
    for (const auto& [name, pair] : {std::pair("crop", out.crop), std::pair("stride", out.stride)})
        if (pair && !(is_side((*pair)[0]) && is_side((*pair)[1])))
            throw at.error(std::string(name) + " " + listed(*pair) + " has a side that is not in " + SIDES + " pixels");
    if (out.crop && out.stride && ((*out.stride)[0] > (*out.crop)[0] || (*out.stride)[1] > (*out.crop)[1]))
        throw at.error("stride " + listed(*out.stride) + " is above the crop " + listed(*out.crop) +
                       " and leaves gaps");
}

void decode(const Json& value, const At& at, NetworkInput& out) {
    const Object fields(value, at, "NetworkInput", {}, {"name", "shape", "divisor"});
    out.name = fields.get("name", out.name);
    out.shape = fields.get("shape", out.shape);
    out.divisor = fields.get("divisor", out.divisor);
    const auto channels = out.shape[1];
    if (!channels) throw(at / "shape")[1].mistyped("int", nullptr);
    if (out.name != "image" || (*channels != 1 && *channels != 3))
        throw at.error("the network's input " + in_quotes(out.name) + " has shape " + repr(out.shape) +
                       ", not 'image' with 3 or 1 channels");
    for (const auto& size : out.shape)
        if (size && !is_side(*size)) throw at.error("shape " + repr(out.shape) + " has a size that is not in " + SIDES);
    if (!is_side(out.divisor)) throw at.error("divisor " + shown(out.divisor) + " is not in " + SIDES);
}

void decode(const Json& value, const At& at, DepthOutput& out) {
    const Object fields(value, at, "DepthOutput", {"unit", "larger_is", "largest", "interpolation"});
    out.unit = fields.get<std::string>("unit");
    out.larger_is = fields.get<std::string>("larger_is");
    out.largest = fields.get<std::optional<double>>("largest");
    out.interpolation = fields.get<std::string>("interpolation");
    if (out.unit != "metres" && out.unit != "relative")
        throw at.error("unit " + in_quotes(out.unit) + " is neither 'metres' nor 'relative'");
    if (out.larger_is != "farther" && !(out.larger_is == "nearer" && out.unit == "relative"))
        throw at.error("larger_is " + in_quotes(out.larger_is) + " is not 'farther', nor 'nearer' of relative depth");
    if (out.largest && !(*out.largest > 0)) throw at.error("largest " + number(*out.largest) + " is not above 0");
    if (out.interpolation != "bilinear" && out.interpolation != "bicubic")
        throw at.error("interpolation " + in_quotes(out.interpolation) + " is neither 'bilinear' nor 'bicubic'");
}

namespace {

void check_reference(const Json& value, const At& at) {
    if (value.is_null()) return;
    const Object fields(value, at, "Reference",
                        {"preset", "dataset", "protocol", "mIoU", "mIoU_ms_flip", "recognised_by"}, {"figures"});
    for (const char* name : {"preset", "dataset", "protocol", "recognised_by"}) fields.get<std::string>(name);
    for (const char* name : {"mIoU", "mIoU_ms_flip"}) fields.get<std::optional<double>>(name);
    fields.get<std::map<std::string, Json>>("figures", {});
}

void check_objects(const Object& fields) {
    fields.get<std::map<std::string, Json>>("provenance");
    fields.get<std::map<std::string, Json>>("spec");
}

// What concerns the labels of data sets, which this runtime does not read.
void check_labels(const Object& fields) {
    fields.get<bool>("reduce_zero_label");
    const auto ignored = fields.get<long long>("ignore_index", 255);
    if (ignored < 0 || ignored > 255) throw fields.at().error("ignore_index " + shown(ignored) + " is not in 0..255");
    const auto mapped = fields.get<std::map<std::string, long long>>("label_map", {});
    std::vector<std::string> pairs;
    bool usual = true;
    for (const auto& [key, label] : mapped) {
        const bool is_number = !key.empty() && key.size() < 9 &&
                               std::all_of(key.begin(), key.end(), [](unsigned char c) { return std::isdigit(c); });
        usual = usual && is_number && std::stoi(key) <= 255 && 0 <= label && label <= 255;
        pairs.push_back(in_quotes(key) + ": " + shown(label));
    }
    if (!usual) throw fields.at().error("label_map {" + joined(pairs) + "} does not map labels in 0..255 to such");
}

void check_numbers(const Object& fields, const Manifest& manifest) {
    for (const char* name : {"parameters", "patch_size", "stride"})
        if (const auto number = fields.get<long long>(name); number < 1)
            throw fields.at().error(std::string(name) + " " + shown(number) + " is below 1");
    if (manifest.inference.crop &&
        std::min((*manifest.inference.crop)[0], (*manifest.inference.crop)[1]) < manifest.patch_size)
        throw fields.at().error("crop " + listed(*manifest.inference.crop) + " is below one patch of " +
                                shown(manifest.patch_size) + " pixels");
    for (const auto& [precision, points] : fields.get<std::map<std::string, double>>("budgets", {}))
        if (std::find(PRECISIONS.begin(), PRECISIONS.end(), precision) == PRECISIONS.end() || points < 0 ||
            points > 100)
            throw fields.at().error("budget " + in_quotes(precision) + ": " + number(points) +
                                    " is not 0..100 points of a known precision");
    if (manifest.threshold && !manifest.depth &&
        !(manifest.classes.size() == 2 && 0 < *manifest.threshold && *manifest.threshold < 1))
        throw fields.at().error("threshold " + number(*manifest.threshold) +
                                " is not a probability that divides two classes");
}

// What concerns probabilities, which this runtime does not give; no class depends on it.
void check_scores(const Object& fields) {
    const bool scores = fields.get("scores", true);
    const double temperature = fields.get("temperature", 1.0);
    if (!(0.05 <= temperature && temperature <= 20))
        throw fields.at().error("temperature " + number(temperature) + " is not in 0.05..20");
    if (temperature != 1 && !scores)
        throw fields.at().error("temperature " + number(temperature) + " means nothing without scores");
}

void check_depth(const Object& fields, const Manifest& manifest) {
    if (!manifest.depth) throw fields.at().error("a depth network without depth: its unit and its direction");
    const auto refuse = [&](const std::string& name, bool found) {
        if (found) throw fields.at().error(name + " means nothing for depth");
    };
    for (const char* name : {"classes", "palette", "threshold", "reduce_zero_label", "label_map", "augmentation"})
        refuse(name, is_true(fields.get<Json>(name, nullptr)));
    refuse("scores", !fields.get("scores", true));
    refuse("ignore_index", fields.get("ignore_index", 255LL) != 255);
    refuse("temperature", fields.get("temperature", 1.0) != 1);
    if (manifest.inference.mode != "whole")
        throw fields.at().error("depth is not estimated in sliding windows: their depths do not join");
}

std::vector<Class> classes_of(const Object& fields, const Manifest& manifest) {
    const auto names = fields.get<std::vector<std::string>>("classes");
    const auto palette = fields.get<std::vector<std::array<long long, 3>>>("palette");
    if (manifest.task == "depth") {
        check_depth(fields, manifest);
        return {};
    }
    if (manifest.depth) throw fields.at().error("depth is said of a network that tells classes apart");
    if (names.empty()) throw fields.at().error("a model has at least one class");
    for (const auto& colour : palette)
        for (const long long level : colour)
            if (level < 0 || level > 255) throw fields.at().error("the palette is not within 0..255");
    if (palette.size() != names.size())
        throw fields.at().error(std::to_string(palette.size()) + " colours for " + std::to_string(names.size()) +
                                " classes");
    if (names.size() > MOST_CLASSES)
        throw BundleError(fields.at().file + ": the C++ runtime has masks of 16 bits, and there are " +
                              std::to_string(names.size()) + " classes",
                          "Run it with Python's runtime.");
    std::vector<Class> classes;
    for (std::size_t i = 0; i < names.size(); ++i)
        classes.push_back(
            {names[i], {std::uint8_t(palette[i][0]), std::uint8_t(palette[i][1]), std::uint8_t(palette[i][2])}});
    return classes;
}

std::string escaped(const std::string& name) {
    const std::string text = Json(name).dump(-1, ' ', true);
    return text.substr(1, text.size() - 2);
}

// Names are printed, one a line: a name with a line break could add any line.
void check_printable(const Manifest& manifest, const At& at) {
    std::vector<std::string> names = {manifest.name, manifest.architecture, manifest.source};
    for (const Class& each : manifest.classes) names.push_back(each.name);
    for (const auto& [name, _] : manifest.artifacts) names.push_back(name);
    for (const std::string& name : names)
        if (has_controls(name)) throw at.error("the name " + in_quotes(escaped(name)) + " holds control characters");
}

void check_source(const Manifest& manifest, const At& at) {
    const std::string gives = manifest.task == "depth" ? "depth" : "logits";
    const auto found = manifest.artifacts.find(manifest.source);
    const Artifact* source = found == manifest.artifacts.end() ? nullptr : &found->second;
    if (!source || source->kind != "onnx" || source->precision != "fp32" || source->output != gives || source->made_of)
        throw(at / "source")
            .error(in_quotes(manifest.source) + " is not an artifact of kind onnx and precision fp32 that gives " +
                   gives + " and is made of no other");
}

}  // namespace

Manifest Manifest::from_json(const std::string& text, const std::string& file) {
    const Json data = parse_json(text, file);
    const Json version = data.is_object() ? data.value("format_version", Json()) : Json();
    if (version != FORMAT_VERSION)
        throw BundleError(file + ": format version " + repr(version) + "; this Denseport reads version " +
                              std::to_string(FORMAT_VERSION),
                          "Export or import it again, or use the Denseport that wrote the bundle.");
    const Object fields(
        data, {file, "manifest"}, "Manifest",
        {"name", "architecture", "parameters", "patch_size", "stride", "classes", "palette", "reduce_zero_label",
         "preprocess", "inference", "reference", "provenance", "spec", "source", "task", "input"},
        {"depth", "augmentation", "align_corners", "via_input", "threshold", "scores", "temperature", "label_map",
         "ignore_index", "artifacts", "budgets", "format_version"});
    const At& at = fields.at();
    fields.get<long long>("format_version");
    Manifest manifest;
    manifest.name = fields.get<std::string>("name");
    manifest.architecture = fields.get<std::string>("architecture");
    manifest.source = fields.get<std::string>("source");
    manifest.patch_size = fields.get<long long>("patch_size");
    manifest.preprocess = fields.get<Steps>("preprocess");
    manifest.inference = fields.get<Inference>("inference");
    manifest.input = fields.get<NetworkInput>("input");
    manifest.augmentation = fields.get<std::optional<Augmentation>>("augmentation", std::nullopt);
    manifest.align_corners = fields.get("align_corners", false);
    manifest.via_input = fields.get("via_input", true);
    manifest.threshold = fields.get<std::optional<double>>("threshold", std::nullopt);
    manifest.artifacts = fields.get<std::map<std::string, Artifact>>("artifacts", {});
    check_reference(fields.get<Json>("reference"), at / "reference");
    check_objects(fields);
    manifest.task = fields.get<std::string>("task");
    if (manifest.task != "segmentation" && manifest.task != "depth")
        throw at.error("task " + in_quotes(manifest.task) + " is not one of segmentation, depth");
    manifest.depth = fields.get<std::optional<DepthOutput>>("depth", std::nullopt);
    manifest.classes = classes_of(fields, manifest);
    check_steps(manifest.preprocess, at);
    if (const auto channels = normalisation(manifest.preprocess).mean.size();
        (long long)channels != manifest.input.shape[1])
        throw at.error("mean and std are of " + std::to_string(channels) + " channels, the network takes " +
                       shown(*manifest.input.shape[1]));
    check_numbers(fields, manifest);
    check_scores(fields);
    check_labels(fields);
    check_printable(manifest, at);
    check_source(manifest, at);
    return manifest;
}

}  // namespace denseport
