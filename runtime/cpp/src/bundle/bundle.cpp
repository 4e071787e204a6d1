#include "bundle/bundle.hpp"

#include <system_error>

#include "bundle/external_data.hpp"
#include "system/files.hpp"
#include "system/sha256.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t LARGEST_MANIFEST = 64 << 20;  // bytes; the largest seen has 0.3 MB
const std::string MAKE_ONE =
    "Make one: denseport export CHECKPOINT -o BUNDLE, or denseport import MODEL.onnx -o BUNDLE";

BundleError unreadable(const fs::path& file, const std::error_code& code) {
    return {file.string() + ": cannot be read: " + code.message(), "Check its permissions, or export again."};
}

// The error for a path that is missing, or is one of the files that people give instead of a bundle.
BundleError no_folder(const fs::path& path) {
    if (!fs::exists(path)) return {path.string() + ": no such folder", MAKE_ONE};
    std::string remedy = MAKE_ONE;
    if (fs::is_regular_file(path.parent_path() / MANIFEST))
        remedy = "Give the bundle's folder: " + path.parent_path().string();
    else if (path.extension() == ".pth" || path.extension() == ".safetensors")
        remedy = "Export it first: denseport export " + path.string() + " -o BUNDLE";
    else if (path.extension() == ".onnx")
        remedy = "Import it first: denseport import " + path.string() + " -o BUNDLE";
    return {path.string() + ": not a bundle: a file", remedy};
}

std::string read_manifest(const fs::path& folder) {
    const fs::path file = folder / MANIFEST;
    try {
        if (!fs::is_directory(folder)) throw no_folder(folder);
        if (!fs::exists(file))
            throw BundleError(folder.string() + ": not a bundle: no " + MANIFEST + " in it", MAKE_ONE);
        if (!fs::is_regular_file(file))  // reading a pipe would wait for ever
            throw BundleError(file.string() + ": cannot be read: not an ordinary file", EXPORT_AGAIN);
        if (fs::file_size(file) > LARGEST_MANIFEST)
            throw BundleError(file.string() + ": larger than 64 MiB: no manifest", EXPORT_AGAIN);
        const auto data = read_file(file);
        return {data.begin(), data.end()};
    } catch (const std::system_error& error) {  // std::filesystem's too
        throw unreadable(file, error.code());
    }
}

void verify(const fs::path& folder, const std::string& name, const std::string& digest) {
    const fs::path file = folder / name;
    try {
        if (fs::path(name).filename() != name || name == "." || name == ".." || fs::is_symlink(file))
            throw BundleError(folder.string() + ": " + in_quotes(name) + " does not name a file of the bundle itself",
                              EXPORT_AGAIN);
        if (!fs::is_regular_file(file))
            throw BundleError(file.string() + ": missing from the bundle",
                              "Copy the bundle again, whole, or export again.");
        if (sha256_of(file) != digest)
            throw BundleError(file.string() + ": altered since it was written: its hash differs from the manifest's",
                              "Copy the bundle again, or export again; an altered model is never run.");
    } catch (const std::system_error& error) {
        throw unreadable(file, error.code());
    }
}

// An ONNX file may make its reader open only files that were verified.
void refuse_unlisted(const fs::path& model, const Artifact& artifact) {
    try {
        const Mapped mapped(model);
        for (const std::string& name : external_files(mapped.data(), mapped.size()))
            if (artifact.files.count(name) == 0)
                throw BundleError(model.string() + ": has weights in " + in_quotes(name) +
                                      ", which the manifest does not list for it",
                                  "Do not run this bundle unless you know why; export or import it again.");
    } catch (const NotProtobuf& error) {
        throw BundleError(model.string() + ": no ONNX model: " + error.what(), EXPORT_AGAIN);
    } catch (const std::system_error& error) {
        throw unreadable(model, error.code());
    }
}

}  // namespace

Bundle::Bundle(const fs::path& folder) : path_(folder) {
    const std::string text = read_manifest(folder);
    digest_ = sha256_of_text(text);
    manifest_ = Manifest::from_json(text, (folder / MANIFEST).string());
}

const Artifact& Bundle::artifact(const std::string& name) const {
    const auto& artifacts = manifest_.artifacts;
    if (const auto found = artifacts.find(name); found != artifacts.end()) return found->second;
    std::vector<std::string> known, meant;
    for (const auto& [each, artifact] : artifacts) {
        known.push_back(each);
        if (each.rfind(name + ".", 0) == 0 || artifact.precision == name) meant.push_back(each);
    }
    throw BundleError(
        path_.string() + ": no artifact " + in_quotes(name) + "; it has " + joined(known),
        meant.empty() ? "Build it with denseport build." : "Give its whole name: " + joined(meant, " or ") + ".");
}

fs::path Bundle::verified(const std::string& name) const {
    const Artifact& each = artifact(name);
    for (const auto& [file, digest] : each.files) verify(path_, file, digest);
    if (each.kind == "onnx") refuse_unlisted(path_ / each.main, each);
    return path_ / each.main;
}

}  // namespace denseport
