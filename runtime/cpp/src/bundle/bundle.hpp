// A bundle on disk: a folder with a manifest and the artifacts that it names; as denseport.runtime.bundle.bundle.
#pragma once

#include <filesystem>
#include <string>

#include "bundle/manifest.hpp"

namespace denseport {

inline const std::string MANIFEST = "manifest.json";

class Bundle {
public:
    // Throws BundleError: no such folder, no manifest in it, or a manifest that cannot be used.
    explicit Bundle(const std::filesystem::path& folder);

    // Throws BundleError: the bundle has none of that name.
    const Artifact& artifact(const std::string& name) const;
    // The path of an artifact's main file. All its files were found to be what the manifest says.
    //
    // Throws BundleError: a file is missing, altered, or lies outside the bundle, or the model names one for its
    // weights that the manifest does not list.
    std::filesystem::path verified(const std::string& name) const;

    const std::filesystem::path& path() const { return path_; }
    const Manifest& manifest() const { return manifest_; }
    const std::string& digest() const { return digest_; }  // SHA-256 of the manifest's bytes

private:
    std::filesystem::path path_;
    std::string digest_;
    Manifest manifest_;
};

}  // namespace denseport
