// Source: https://github.com/ossf/model-signing-spec: an in-toto statement with the SHA-256 of every file, in a DSSE
// envelope, in a Sigstore bundle. What others could have written is parsed into text alone until the signature is known
// to be right.
#include "signature.hpp"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <array>
#include <map>
#include <memory>
#include <system_error>

#include "bundle/decode.hpp"
#include "system/files.hpp"
#include "system/sha256.hpp"
#include "system/text.hpp"

namespace denseport {
namespace {

namespace fs = std::filesystem;

using Files = std::map<std::string, std::string>;  // path below the bundle: SHA-256
using Key = std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)>;
using Memory = std::unique_ptr<BIO, int (*)(BIO*)>;

const std::string SIGNATURE = "model.sig", LOCK = ".denseport-lock";  // beside the manifest, and themselves unsigned
const std::string PAYLOAD = "application/vnd.in-toto+json";
constexpr std::uintmax_t LARGEST_SIGNATURE = 16 << 20;  // bytes; one of 100 files has 30 kB
const std::map<std::string, const EVP_MD* (*)()> CURVES = {
    {"prime256v1", EVP_sha256}, {"secp384r1", EVP_sha384}, {"secp521r1", EVP_sha512}};

std::string text_of(const fs::path& file) {
    const std::vector<unsigned char> data = read_file(file);
    return {data.begin(), data.end()};
}

std::string curve_of(const EVP_PKEY* key) {
    std::array<char, 64> name{};
    std::size_t length = 0;
    return EVP_PKEY_get_group_name(key, name.data(), name.size(), &length) == 1 ? name.data() : "";
}

Key read_key(const fs::path& file) {
    const auto error = [&](const std::string& what) {
        return InputError("trust " + file.string() + ": nobody can be verified with it: " + what,
                          "Give a public key on P-256, P-384 or P-521, as PEM.");
    };
    try {
        const std::string text = text_of(file);
        const Memory memory(BIO_new_mem_buf(text.data(), int(text.size())), BIO_free);
        const auto no_password = [](char*, int, int, void*) { return -1; };  // else the terminal is asked
        Key key(PEM_read_bio_PUBKEY(memory.get(), nullptr, no_password, nullptr), EVP_PKEY_free);
        if (text.find("-----BEGIN CERTIFICATE-----") != std::string::npos)
            throw error("a certificate, which Python's runtime alone checks");
        if (!key) throw error("no public key");
        if (CURVES.count(curve_of(key.get())) == 0) throw error("on none of these curves");
        return key;
    } catch (const std::system_error& failure) {
        throw error(failure.code().message());
    }
}

// As signatures name a key: the hash of its PEM.
std::string fingerprint(const EVP_PKEY* key) {
    const Memory memory(BIO_new(BIO_s_mem()), BIO_free);
    char* text = nullptr;
    if (!memory || PEM_write_bio_PUBKEY(memory.get(), key) != 1) throw std::bad_alloc();
    const long size = BIO_get_mem_data(memory.get(), &text);
    return sha256_of_text({text, std::size_t(size)});
}

std::string from_base64(const std::string& text) {
    std::vector<unsigned char> data(text.size());
    const int size =
        EVP_DecodeBlock(data.data(), reinterpret_cast<const unsigned char*>(text.data()), int(text.size()));
    const auto padding = std::ptrdiff_t(text.size() - (text.find_last_not_of('=') + 1));
    if (padding > 2 || size < padding) throw std::invalid_argument("no base64");
    return {data.begin(), data.begin() + size - padding};
}

BundleError unreadable(const fs::path& file, const std::exception& error) {
    const auto* ours = dynamic_cast<const Error*>(&error);
    return {file.string() + ": no signature that can be read: " + (ours ? ours->message() : error.what()),
            "Sign it again: denseport sign " + file.parent_path().string() + " --key KEY. Else do not run it."};
}

struct Envelope {
    std::string signer;     // the hash of the key, which nobody signed
    std::string payload;    // that is signed
    std::string signature;  // DER
};

Envelope read_envelope(const fs::path& file) {
    try {
        if (!fs::is_regular_file(fs::symlink_status(file)) || fs::file_size(file) > LARGEST_SIGNATURE)
            throw std::invalid_argument("no ordinary file of at most 16 MiB");
        const Json data = parse_json(text_of(file), "its text"), &envelope = data.at("dsseEnvelope");
        const Json& material = data.at("verificationMaterial");
        if (!material.contains("publicKey")) throw std::invalid_argument("a certificate's, which Python alone checks");
        if (data.at("mediaType") != "application/vnd.dev.sigstore.bundle.v0.3+json" ||
            envelope.at("payloadType") != PAYLOAD)
            throw std::invalid_argument("of something else than a model");
        return {material.at("publicKey").at("hint").get<std::string>(),
                from_base64(envelope.at("payload").get<std::string>()),
                from_base64(envelope.at("signatures").at(0).at("sig").get<std::string>())};
    } catch (const std::exception& error) {  // of JSON, of the file system, and those above
        throw unreadable(file, error);
    }
}

bool has_signed(EVP_PKEY* key, const Envelope& said) {
    if (fingerprint(key) != said.signer) return false;
    const std::string signed_text = "DSSEv1 " + std::to_string(PAYLOAD.size()) + " " + PAYLOAD + " " +
                                    std::to_string(said.payload.size()) + " " + said.payload;
    const auto bytes = [](const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); };
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    if (!context) throw std::bad_alloc();
    const EVP_MD* digest = CURVES.at(curve_of(key))();
    return EVP_DigestVerifyInit(context.get(), nullptr, digest, nullptr, key) == 1 &&
           EVP_DigestVerify(context.get(), bytes(said.signature), said.signature.size(), bytes(signed_text),
                            signed_text.size()) == 1;
}

// Of the statement that was signed.
Files signed_files(const std::string& payload, const fs::path& file) {
    try {
        const Json statement = parse_json(payload, "what it signs");
        if (statement.at("_type") != "https://in-toto.io/Statement/v1" ||
            statement.at("predicateType") != "https://model_signing/signature/v1.0")
            throw std::invalid_argument("of another format");
        Files found;
        for (const Json& each : statement.at("predicate").at("resources")) {
            if (each.at("algorithm") != "sha256") throw std::invalid_argument("of other hashes than SHA-256");
            found[each.at("name").get<std::string>()] = each.at("digest").get<std::string>();
        }
        return found;
    } catch (const std::exception& error) {
        throw unreadable(file, error);
    }
}

// Of the folder; a link leads to what is not signed.
Files found_files(const fs::path& folder) {
    Files found;
    for (const fs::directory_entry& each : fs::recursive_directory_iterator(fs::canonical(folder))) {
        const std::string name = each.path().lexically_relative(fs::canonical(folder)).generic_string();
        const bool left_out = name == SIGNATURE || name == LOCK;
        const fs::file_status status = each.symlink_status();
        if (!fs::is_regular_file(status) && (!fs::is_directory(status) || left_out))
            throw BundleError(each.path().string() + ": neither a file nor a folder of the bundle itself",
                              "Put the file itself in its place, or remove it.");
        if (fs::is_regular_file(status) && !left_out) found[name] = sha256_of(each.path());
    }
    return found;
}

void refuse_changes(const Bundle& bundle, const Files& signed_ones, const Files& found) {
    std::vector<std::string> told;
    for (const auto& [name, digest] : signed_ones) {
        const auto other = found.find(name);
        if (other == found.end() || other->second != digest)
            told.push_back(name + (other == found.end() ? " removed" : " altered"));
    }
    for (const auto& [name, _] : found)
        if (signed_ones.count(name) == 0) told.push_back(name + " added");
    if (told.size() > 5) told.resize(5), told.push_back("…");
    if (!told.empty())
        throw BundleError(bundle.path().string() + ": signed before it changed: " + joined(told, "; "),
                          "If you know that change (eval --record, build, calibrate), sign it again: denseport sign " +
                              bundle.path().string() + " --key KEY. Else do not run it.");
    if (const auto manifest = found.find(MANIFEST); manifest == found.end() || manifest->second != bundle.digest())
        throw BundleError(bundle.path().string() + ": changed while it was verified",
                          "Verify it again when nobody writes it.");
}

}  // namespace

void verify_signature(const Bundle& bundle, const std::vector<fs::path>& trust) {
    std::vector<Key> keys;
    for (const fs::path& file : trust) keys.push_back(read_key(file));
    const fs::path file = bundle.path() / SIGNATURE;
    if (!fs::exists(fs::symlink_status(file)))
        throw BundleError(bundle.path().string() + ": not signed: no " + SIGNATURE + " in it",
                          "Sign it: denseport sign " + bundle.path().string() + " --key KEY");
    const Envelope said = read_envelope(file);
    for (const Key& key : keys) {
        if (!has_signed(key.get(), said)) continue;
        try {
            return refuse_changes(bundle, signed_files(said.payload, file), found_files(bundle.path()));
        } catch (const std::system_error& error) {
            throw BundleError(bundle.path().string() + ": cannot be read: " + error.code().message(),
                              "Check the permissions of its files.");
        }
    }
    throw BundleError(file.string() + ": not signed by whom you trust, but by the key " + said.signer.substr(0, 16) +
                          "…, or by somebody who claims to be its owner",
                      "Do not run it unless you know who signed it, and why.");
}

}  // namespace denseport
