// From an image to the network's input, and from its logits to the image's mask. Joined with common.cu and
// resize_argmax.cu, which come first.

// ---------------------------------------------------------------------------------------------------------
// Resize and normalise: the grey levels of OpenCV's INTER_LINEAR on 8 bits (modules/imgproc/src/resize.cpp)
// ---------------------------------------------------------------------------------------------------------

// Two neighbouring source pixels and their weights in 2048ths.
struct Blend {
  int before, after, weight_before, weight_after;
};

// OpenCV's own roundings, one by one: the scale in double, by two divisions; the coordinate in double and then in
// float; the weights to whole 2048ths. `at_border`: along rows of pixels a tap beyond the border has no weight; rows
// beyond it keep theirs, which the two shifts below round differently.
DEVICE Blend blend_of(int output, double scale, int source, bool at_border) {
  const float position = (float)__dadd_rn(__dmul_rn(output + 0.5, scale), -0.5);
  const int index = (int)floorf(position);
  const bool outside = index < 0 || index >= source - 1;
  const float fraction = at_border && outside ? 0.0f : position - floorf(position);
  return {at_least(at_most(index, source - 1), 0), at_least(at_most(index + 1, source - 1), 0),
          (int)rintf((1.0f - fraction) * 2048.0f), (int)rintf(fraction * 2048.0f)};
}

DEVICE double scale_of(int source, int output) { return 1.0 / ((double)output / (double)source); }

// image (height, width, 3) uint8, levels (3, 256) float32: what each grey level of an output channel becomes; output
// (3, network_height, network_width) float32. `reversed`: the output's channels are the image's, last first.
DEVICE void resize_normalise_pixels(const unsigned char* __restrict__ image, const float* __restrict__ levels,
                                    int height, int width, int network_height, int network_width, int reversed,
                                    float* __restrict__ output) {
  const double scale_y = scale_of(height, network_height), scale_x = scale_of(width, network_width);
  const unsigned pixels = (unsigned)network_height * network_width;
  for (unsigned item = first_item(); item < pixels; item += item_stride()) {
    const int y = (int)(item / network_width), x = (int)(item - (unsigned)y * network_width);
    const Blend rows = blend_of(y, scale_y, height, false), columns = blend_of(x, scale_x, width, true);
    const unsigned char* upper = image + (long long)rows.before * width * 3;
    const unsigned char* lower = image + (long long)rows.after * width * 3;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int before = 3 * columns.before + c, after = 3 * columns.after + c;
      const int above = upper[before] * columns.weight_before + upper[after] * columns.weight_after;
      const int below = lower[before] * columns.weight_before + lower[after] * columns.weight_after;
      const int sum = ((rows.weight_before * (above >> 4)) >> 16) + ((rows.weight_after * (below >> 4)) >> 16);
      const int channel = reversed ? 2 - c : c;
      output[(long long)channel * pixels + item] = levels[256 * channel + ((sum + 2) >> 2)];
    }
  }
}

// Sets the flag where one of logits (classes, height, width) is infinite or no number; else leaves it as it is.
template <typename T>
DEVICE void flag_non_finite(const T* __restrict__ logits, int classes, int height, int width, int* flag) {
  const unsigned pixels = (unsigned)height * width;
  bool finite = true;
  for (unsigned item = first_item(); item < pixels; item += item_stride())
    for (int c = 0; c < classes; ++c) finite &= to_float(logits[(long long)c * pixels + item]) * 0.0f == 0.0f;
  if (!finite) *flag = 1;
}

// ---------------------------------------------------------------------------------------------------------
// Entry points. launch.py holds their names and the numbers that they are launched with.
// ---------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    resize_normalise(const unsigned char* __restrict__ image, const float* __restrict__ levels, int height, int width,
                     int network_height, int network_width, int reversed, float* __restrict__ output) {
  resize_normalise_pixels(image, levels, height, width, network_height, network_width, reversed, output);
}

#define IMAGE_MASK(NAME, T, CLASS)                                                                                  \
  extern "C" __global__ void __launch_bounds__(128, 4)                                                                \
      NAME(const T* __restrict__ logits, int classes, int height, int width, int network_height, int network_width,   \
           int image_height, int image_width, CLASS* __restrict__ output) {                                       \
    resize_argmax(logits, 1, classes, {height, width, network_height, network_width, image_height, image_width},  \
                  output);                                                                                            \
  }
IMAGE_MASK(image_mask_f32_u8, float, unsigned char)
IMAGE_MASK(image_mask_f32_u16, float, unsigned short)
IMAGE_MASK(image_mask_f16_u8, Half, unsigned char)
IMAGE_MASK(image_mask_f16_u16, Half, unsigned short)

#define NON_FINITE(NAME, T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                                          \
      NAME(const T* __restrict__ logits, int classes, int height, int width, int* __restrict__ flag) {       \
    flag_non_finite(logits, classes, height, width, flag);                                                   \
  }
NON_FINITE(non_finite_f32, float)
NON_FINITE(non_finite_f16, Half)
