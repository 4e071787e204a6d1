// Segments image files with the C++ runtime and prints the share of each class that occurs.
//
//     shares BUNDLE IMAGE...
#include <denseport/denseport.hpp>

#include <cstdio>

int main(int count, char** words) {
    if (count < 3) {
        std::fprintf(stderr, "usage: shares BUNDLE IMAGE...\n");
        return 2;
    }
    try {
        const denseport::Segmenter segment(words[1]);
        std::fprintf(stderr, "%s\n", segment.description().c_str());
        for (int i = 2; i < count; ++i) {
            const cv::Mat mask = segment(words[i]).mask;
            std::vector<int> pixels(segment.classes().size());
            for (int y = 0; y < mask.rows; ++y)
                for (int x = 0; x < mask.cols; ++x) {
                    const auto wide = mask.depth() != CV_8U;  // more than 256 classes
                    ++pixels[wide ? mask.at<std::uint16_t>(y, x) : mask.at<std::uint8_t>(y, x)];
                }
            std::printf("%s:", words[i]);
            for (std::size_t k = 0; k < pixels.size(); ++k)
                if (pixels[k] > 0)
                    std::printf(" %s %.1f %%", segment.classes()[k].name.c_str(),
                                100.0 * pixels[k] / double(mask.total()));
            std::printf("\n");
        }
        return 0;
    } catch (const denseport::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.exit_code();
    }
}
