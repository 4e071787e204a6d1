// Runs an engine through the C++ runtime's back end for TensorRT, for tests/runtime/cpp/test_tensorrt.py: a network input
// of the named size comes from standard input as floats, and what the engine gives of it goes to standard output.
//
//     session ENGINE WIDTH HEIGHT
//
// With one argument it reads a file of [record, version, [major, minor]] and prints a line for each: why that record's
// engine does not run there.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>

#include "backends/tensorrt.hpp"

static int compare(const char* file) {
    for (const denseport::Json& each : denseport::Json::parse(std::ifstream(file))) {
        denseport::Artifact engine;
        engine.record = each[0].get<std::map<std::string, denseport::Json>>();
        const denseport::Capability capability{each[2][0].get<int>(), each[2][1].get<int>()};
        std::cout << mismatch(denseport::BuildRecord::of(engine, "engine"), each[1].get<std::string>(), capability) << '\n';
    }
    return 0;
}

int main(int count, char** words) {
    if (count == 2) return compare(words[1]);
    const denseport::BuildRecord record{"tensorrt", "11.1.0.106", "sm_90", {}, false, "none"};
    const int width = std::atoi(words[2]), height = std::atoi(words[3]);
    try {
        const std::string problem =
            denseport::mismatch(record, denseport::tensorrt_version(), *denseport::gpu_capability());
        if (!problem.empty()) throw denseport::MachineError(problem, "");
        const auto session = denseport::open_tensorrt(words[1], record);
        std::cerr << session->description() << '\n';
        denseport::Tensor image{{1, 3, height, width}, std::vector<float>(std::size_t(3 * height * width))};
        if (std::fread(image.values.data(), sizeof(float), image.values.size(), stdin) != image.values.size()) return 1;
        for (int again = 0; again < 2; ++again) {  // the second finds the context ready
            const denseport::Tensor found = session->run(image);
            std::fwrite(found.values.data(), sizeof(float), found.values.size(), stdout);
        }
        return 0;
    } catch (const denseport::Error& error) {
        std::cerr << error.what() << '\n';
        return error.exit_code();
    }
}
