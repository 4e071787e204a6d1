// How images reach the network; as denseport.runtime.bundle.protocol.
#pragma once

#include <string>

#include "bundle/manifest.hpp"

namespace denseport {

struct Protocol {
    std::string name;
    Steps preprocess;
    Inference inference;
    std::optional<Augmentation> augmentation;
    NetworkInput input;
};

// "reference", "ms-flip", "ms-flip:1.x", "slide", "slide:512:341", "native", "native:512:341", "fixed:1024x512".
//
// Throws InputError: none of these, or one of segmentation for a network of depth.
Protocol parse_protocol(const std::string& text, const Manifest& manifest);

}  // namespace denseport
