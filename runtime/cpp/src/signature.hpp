// Who signed a bundle, and that nothing in it changed since; as denseport.runtime.bundle.signature, of bare keys alone.
#pragma once

#include <filesystem>
#include <vector>

#include "bundle/bundle.hpp"

namespace denseport {

// ``trust``: files of public keys on P-256, P-384 or P-521, PEM: the owner of one of them must have signed.
//
// Throws BundleError: not signed, by another, or changed since; InputError: a file that holds no such key.
void verify_signature(const Bundle& bundle, const std::vector<std::filesystem::path>& trust);

}  // namespace denseport
