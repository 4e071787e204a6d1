// The fused kernels of DPT's decoder: upsampling + addition, and upsampling + argmax.
//
// Joined with common.cu and resize_argmax.cu of runtime/kernels, which come first. Tensors start at a multiple of
// 16 bytes (TensorRT gives 256).
//
// How the work is cut. Between two neighbouring source rows lies a band of output rows that all read these
// two rows and nothing else; h rows make h + 1 bands, the outer two of half the height. A thread owns a
// *strip*: one band (or a few of its rows) by COLUMNS source columns. It loads each tap once, with vector
// loads along the row, and computes all its outputs from registers. COLUMNS is the largest power of two that
// divides the row's length, so that vector accesses are aligned at any size; an odd row goes by single
// columns.
//
// Weights are ratios of exact integers, never differences of rounded coordinates: a coordinate near 500 in
// FP32 would cost its fraction nine bits. Arithmetic is FP32 throughout. A tap of weight zero does not
// count, whatever it holds (0 x infinity is no NaN here).

#ifdef __CUDACC__
DEVICE void from_float(float value, Half& result) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value)); }
DEVICE void unpack(unsigned halves, float& low, float& high) {
  asm("{ .reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
      : "=f"(low), "=f"(high)
      : "r"(halves));
}
DEVICE void prefetch_to_l2(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
#endif

DEVICE void from_float(float value, float& result) { result = value; }

// N neighbouring elements, moved by the widest access that they allow.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T at[N];
};

template <int N, typename T>
DEVICE Vector<T, N> load(const T* address) {
  return *reinterpret_cast<const Vector<T, N>*>(address);
}

template <int N, typename T>
DEVICE void store(T* address, const Vector<T, N>& vector) {
  *reinterpret_cast<Vector<T, N>*>(address) = vector;
}

template <int N>
DEVICE void to_floats(const Vector<float, N>& vector, float* floats) {
#pragma unroll
  for (int i = 0; i < N; ++i) floats[i] = vector.at[i];
}

// Two by two: one by one, the compiler spends an instruction on taking each pair apart.
template <int N>
DEVICE void to_floats(const Vector<Half, N>& vector, float* floats) {
#pragma unroll
  for (int i = 0; i + 1 < N; i += 2)
    unpack(reinterpret_cast<const unsigned*>(vector.at)[i / 2], floats[i], floats[i + 1]);
  if (N % 2) floats[N - 1] = to_float(vector.at[N - 1]);
}

// COLUMNS pixels of a source row as they come from memory, and their two neighbours; the border repeats
// itself. They stay raw until needed, since one class's taps are loaded while the class before is worked on.
template <typename T, int COLUMNS>
struct Taps {
  Vector<T, COLUMNS> own;
  T before, after;
};

template <int COLUMNS, typename T>
DEVICE Taps<T, COLUMNS> load_taps(const T* address, bool at_left, bool at_right) {
  Taps<T, COLUMNS> taps;
  taps.own = load<COLUMNS>(address);
  taps.before = at_left ? taps.own.at[0] : address[-1];
  taps.after = at_right ? taps.own.at[COLUMNS - 1] : address[COLUMNS];
  return taps;
}

template <int COLUMNS, typename T>
DEVICE void to_floats(const Taps<T, COLUMNS>& taps, float (&floats)[COLUMNS + 2]) {
  floats[0] = to_float(taps.before);
  to_floats(taps.own, floats + 1);
  floats[COLUMNS + 1] = to_float(taps.after);
}

// ---------------------------------------------------------------------------------------------------------
// UpsampleAdd: output = bilinear x2 of `input` + `residual`
// ---------------------------------------------------------------------------------------------------------

// The weights of output 2k, whose taps are k - 1 and k, and of output 2k + 1, whose taps are k and k + 1, on
// a side of `size` source pixels. With aligned corners output o lies at o (size - 1) / (2 size - 1). Where
// both taps are the border pixel any two weights that sum to one are right; halves keep infinities clean of
// zeros.
template <bool CORNERS>
DEVICE Pair even_weights(int k, int size) {
  if (!CORNERS) return {0.25f, 0.75f};
  if (k == 0) return {0.5f, 0.5f};
  const float unit = 1.0f / (float)(2 * size - 1);
  return {(float)k * unit, (float)(2 * size - 1 - k) * unit};
}

template <bool CORNERS>
DEVICE Pair odd_weights(int k, int size) {
  if (!CORNERS) return {0.75f, 0.25f};
  if (k == size - 1) return {0.5f, 0.5f};
  const float unit = 1.0f / (float)(2 * size - 1);
  return {(float)(size + k) * unit, (float)(size - 1 - k) * unit};
}

DEVICE float blend(Pair weights, float before, float after, float addend = 0.0f) {
  return fmaf(weights.after, after, fmaf(weights.before, before, addend));
}

// Rows 2 band - 1 and 2 band of one plane's output, columns 2 column to 2 (column + COLUMNS) - 1.
template <bool CORNERS, int COLUMNS, typename T>
DEVICE void upsample_add_strip(const T* __restrict__ input, const T* __restrict__ residual, T* __restrict__ output,
                               int height, int width, int band, int column) {
  constexpr int OUTPUTS = 2 * COLUMNS, CHUNK = sizeof(T) * OUTPUTS > 16 ? 16 / sizeof(T) : OUTPUTS;
  const bool at_left = column == 0, at_right = column + COLUMNS == width;
  const int above = at_least(band - 1, 0), below = at_most(band, height - 1);
  const Taps<T, COLUMNS> above_taps = load_taps<COLUMNS>(input + above * width + column, at_left, at_right);
  const Taps<T, COLUMNS> below_taps = load_taps<COLUMNS>(input + below * width + column, at_left, at_right);

  // All loads come before any use. Rows outside of the plane load another one, and are not stored.
  Vector<T, CHUNK> addends[2][OUTPUTS / CHUNK];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int chunk = 0; chunk < OUTPUTS / CHUNK; ++chunk) {
      const int row = at_most(at_least(2 * band - 1 + half, 0), 2 * height - 1);
      addends[half][chunk] = load<CHUNK>(residual + 2 * (row * width + column) + chunk * CHUNK);
    }

  float upper[COLUMNS + 2], lower[COLUMNS + 2], upper_wide[OUTPUTS], lower_wide[OUTPUTS];
  to_floats(above_taps, upper);
  to_floats(below_taps, lower);
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const Pair even = even_weights<CORNERS>(column + i, width), odd = odd_weights<CORNERS>(column + i, width);
    upper_wide[2 * i] = blend(even, upper[i], upper[i + 1]);
    lower_wide[2 * i] = blend(even, lower[i], lower[i + 1]);
    upper_wide[2 * i + 1] = blend(odd, upper[i + 1], upper[i + 2]);
    lower_wide[2 * i + 1] = blend(odd, lower[i + 1], lower[i + 2]);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = 2 * band - 1 + half;
    if (row < 0 || row >= 2 * height) continue;
    const Pair weights = half ? even_weights<CORNERS>(band, height) : odd_weights<CORNERS>(band - 1, height);
#pragma unroll
    for (int chunk = 0; chunk < OUTPUTS / CHUNK; ++chunk) {
      float addend[CHUNK];
      to_floats(addends[half][chunk], addend);
      Vector<T, CHUNK> sums;
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) {
        const int column_of_strip = chunk * CHUNK + i;
        from_float(blend(weights, upper_wide[column_of_strip], lower_wide[column_of_strip], addend[i]), sums.at[i]);
      }
      store<CHUNK>(output + 2 * (row * width + column) + chunk * CHUNK, sums);
    }
  }
}

template <bool CORNERS, int COLUMNS, typename T>
DEVICE void upsample_add_strips(const T* __restrict__ input, const T* __restrict__ residual, int planes, int height,
                                int width, T* __restrict__ output) {
  const unsigned strips = width / COLUMNS, bands = height + 1, items = planes * bands * strips;
  for (unsigned item = first_item(); item < items; item += item_stride()) {
    const unsigned row = item / strips, plane = row / bands;
    const long long offset = (long long)plane * height * width;
    upsample_add_strip<CORNERS, COLUMNS>(input + offset, residual + 4 * offset, output + 4 * offset, height, width,
                                         (int)(row - plane * bands), (int)(item - row * strips) * COLUMNS);
  }
}

// input (planes, height, width), residual and output (planes, 2 height, 2 width), all contiguous.
template <bool CORNERS, typename T>
DEVICE void upsample_add(const T* __restrict__ input, const T* __restrict__ residual, int planes, int height,
                         int width, T* __restrict__ output) {
  constexpr int WIDEST = 16 / sizeof(T);
  if (width % WIDEST == 0)
    upsample_add_strips<CORNERS, WIDEST>(input, residual, planes, height, width, output);
  else if (WIDEST == 8 && width % 4 == 0)
    upsample_add_strips<CORNERS, 4>(input, residual, planes, height, width, output);
  else if (width % 2 == 0)
    upsample_add_strips<CORNERS, 2>(input, residual, planes, height, width, output);
  else
    upsample_add_strips<CORNERS, 1>(input, residual, planes, height, width, output);
}

// The same with channels last, in groups of 8 (TensorRT's HWC8). A thread owns one group of the four outputs between
// four pixels; pointers are at this group of an image's first pixel, and pixels are `pitch` elements apart.
template <bool CORNERS>
DEVICE void upsample_add_cell(const Half* __restrict__ input, const Half* __restrict__ residual,
                              Half* __restrict__ output, long long pitch, int height, int width, int y, int x) {
  const int above = at_least(y - 1, 0) * width, below = at_most(y, height - 1) * width;
  const int left = at_least(x - 1, 0), right = at_most(x, width - 1);
  const Vector<Half, 8> taps[4] = {load<8>(input + (above + left) * pitch), load<8>(input + (above + right) * pitch),
                                   load<8>(input + (below + left) * pitch), load<8>(input + (below + right) * pitch)};
  Vector<Half, 8> addends[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int column = at_most(at_least(2 * x - 1 + corner % 2, 0), 2 * width - 1);
    const int row = at_most(at_least(2 * y - 1 + corner / 2, 0), 2 * height - 1);
    addends[corner] = load<8>(residual + (row * (2 * width) + column) * pitch);
  }

  float upper_left[8], upper_right[8], lower_left[8], lower_right[8];
  to_floats(taps[0], upper_left);
  to_floats(taps[1], upper_right);
  to_floats(taps[2], lower_left);
  to_floats(taps[3], lower_right);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int column = 2 * x - 1 + corner % 2, row = 2 * y - 1 + corner / 2;
    if (column < 0 || column >= 2 * width || row < 0 || row >= 2 * height) continue;
    const Pair across = corner % 2 ? even_weights<CORNERS>(x, width) : odd_weights<CORNERS>(x - 1, width);
    const Pair down = corner / 2 ? even_weights<CORNERS>(y, height) : odd_weights<CORNERS>(y - 1, height);
    float addend[8];
    to_floats(addends[corner], addend);
    Vector<Half, 8> sums;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float upper = blend(across, upper_left[i], upper_right[i]);
      const float lower = blend(across, lower_left[i], lower_right[i]);
      from_float(blend(down, upper, lower, addend[i]), sums.at[i]);
    }
    store<8>(output + (row * (2 * width) + column) * pitch, sums);
  }
}

// input (batch, height, width, 8 groups), residual and output (batch, 2 height, 2 width, 8 groups).
template <bool CORNERS>
DEVICE void upsample_add_hwc8(const Half* __restrict__ input, const Half* __restrict__ residual, int batch,
                              int groups, int height, int width, Half* __restrict__ output) {
  const unsigned cells_x = width + 1, cells_y = height + 1, items = batch * cells_y * cells_x * groups;
  const long long pitch = 8 * groups;
  for (unsigned item = first_item(); item < items; item += item_stride()) {
    const unsigned cell = item / groups, cell_row = cell / cells_x, image = cell_row / cells_y;
    const long long offset = (long long)image * height * width * pitch;
    const int channel = (int)(item - cell * groups) * 8;
    upsample_add_cell<CORNERS>(input + offset + channel, residual + 4 * offset + channel,
                               output + 4 * offset + channel, pitch, height, width, (int)(cell_row - image * cells_y),
                               (int)(cell - cell_row * cells_x));
  }
}

// ---------------------------------------------------------------------------------------------------------
// UpsampleArgmax
// ---------------------------------------------------------------------------------------------------------

// --- by a whole factor: x2, x4, x16, half-pixel centres ---

// Output SCALE k + j has taps k - 1 and k for j < SCALE / 2, else k and k + 1. Weights are in units of
// 1 / (2 SCALE): small odd integers, so that sums of FP16 logits are nearly always exact, and ties with them.
template <int SCALE>
DEVICE constexpr int weight_after(int j) {
  return j < SCALE / 2 ? SCALE + 2 * j + 1 : 2 * j + 1 - SCALE;
}

template <int SCALE>
DEVICE Side<2> whole_factor_side(int output, int size) {
  const int k = output / SCALE, j = output % SCALE, before = k - (j < SCALE / 2);
  const float after = (float)weight_after<SCALE>(j) / (2 * SCALE);
  return {{at_least(before, 0), at_most(before + 1, size - 1)}, {1.0f - after, after}};
}

// A row's taps in FP32. An argmax does not mind a common factor: FP16 logits in units of 1 / (2 SCALE)^2 stay
// far below FP32's limit; FP32 logits might overflow, and are first made smaller by the same power of two.
template <int SCALE, int COLUMNS, typename T>
DEVICE void prepare(const Taps<T, COLUMNS>& taps, float (&floats)[COLUMNS + 2], float& doubt) {
  to_floats(taps, floats);
#pragma unroll
  for (int i = 0; i < COLUMNS + 2; ++i) {
    doubt = suspect(doubt, floats[i]);
    if (sizeof(T) == 4) floats[i] *= 0.25f / (SCALE * SCALE);
  }
}

// Output `i` of the SCALE x COLUMNS outputs of a prepared row, in units of 1 / (2 SCALE).
template <int SCALE, int TAPS>
DEVICE float widen(const float (&tap)[TAPS], int i) {
  const int first = i / SCALE + (i % SCALE >= SCALE / 2), weight = weight_after<SCALE>(i % SCALE);
  return (float)(2 * SCALE - weight) * tap[first] + (float)weight * tap[first + 1];
}

// Classes that a prefetch runs ahead of the loads: enough to cover the memory's latency, few enough for L2.
constexpr int AHEAD = 6;

// Output rows `top` to `top` + ROWS - 1, all in one band, of one image.
template <int SCALE, int COLUMNS, int ROWS, typename T>
DEVICE void upsample_argmax_strip(const T* __restrict__ logits, int classes, int height, int width, int top,
                                  int column, int* __restrict__ output) {
  constexpr int OUTPUTS = SCALE * COLUMNS;
  const int band = (top + SCALE / 2) / SCALE, phase = ROWS == SCALE ? 0 : (top + SCALE / 2) % SCALE;
  const bool at_left = column == 0, at_right = column + COLUMNS == width;
  const long long plane = (long long)height * width;
  const T* upper = logits + at_least(band - 1, 0) * width + column;
  const T* lower = logits + at_most(band, height - 1) * width + column;

  float best[ROWS][OUTPUTS], doubt = 0.0f;
  int winner[ROWS][OUTPUTS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int i = 0; i < OUTPUTS; ++i) best[r][i] = minus_infinity(), winner[r][i] = 0;

  Taps<T, COLUMNS> upper_next = load_taps<COLUMNS>(upper, at_left, at_right);
  Taps<T, COLUMNS> lower_next = load_taps<COLUMNS>(lower, at_left, at_right);
#pragma unroll 1
  for (int c = 0; c < classes; ++c) {
    float above[COLUMNS + 2], below[COLUMNS + 2];
    prepare<SCALE>(upper_next, above, doubt);
    prepare<SCALE>(lower_next, below, doubt);
    if (c + 1 < classes) {
      upper_next = load_taps<COLUMNS>(upper += plane, at_left, at_right);
      lower_next = load_taps<COLUMNS>(lower += plane, at_left, at_right);
      if (c + AHEAD < classes) prefetch_to_l2(lower + (AHEAD - 1) * plane);
    }
#pragma unroll
    for (int i = 0; i < OUTPUTS; ++i) {
      const float from_above = widen<SCALE>(above, i), from_below = widen<SCALE>(below, i);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float weight = (float)(2 * (phase + r) + 1), other = (float)(2 * SCALE) - weight;
        const float value = other * from_above + weight * from_below;
        const bool larger = value > best[r][i];
        copy_if(larger, value, best[r][i]);
        if (larger) winner[r][i] = c;
      }
    }
  }

  constexpr int CHUNK = OUTPUTS < 4 ? OUTPUTS : 4;
  int* target = output + (long long)top * (SCALE * width) + SCALE * column;
  if (is_nan(doubt)) {
#pragma unroll 1
    for (int i = 0; i < ROWS * OUTPUTS; ++i) {
      const int row = top + i / OUTPUTS, x = SCALE * column + i % OUTPUTS;
      if (row < 0 || row >= SCALE * height) continue;
      target[(long long)(i / OUTPUTS) * (SCALE * width) + i % OUTPUTS] = careful_argmax<2>(
          logits, classes, height, width, whole_factor_side<SCALE>(row, height), whole_factor_side<SCALE>(x, width));
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (top + r < 0 || top + r >= SCALE * height) continue;
#pragma unroll
    for (int i = 0; i < OUTPUTS; i += CHUNK) {
      Vector<int, CHUNK> chunk;
#pragma unroll
      for (int j = 0; j < CHUNK; ++j) chunk.at[j] = winner[r][i + j];
      store(target + (long long)r * (SCALE * width) + i, chunk);
    }
  }
}

template <int SCALE, int COLUMNS, int ROWS, typename T>
DEVICE void upsample_argmax_strips(const T* __restrict__ logits, int batch, int classes, int height, int width,
                                   int* __restrict__ output) {
  const unsigned strips = width / COLUMNS, tops = (height + 1) * (SCALE / ROWS), items = batch * tops * strips;
  const long long image_size = (long long)height * width;
  for (unsigned item = first_item(); item < items; item += item_stride()) {
    const unsigned row = item / strips, image = row / tops;
    upsample_argmax_strip<SCALE, COLUMNS, ROWS>(
        logits + image * classes * image_size, classes, height, width, (int)(row - image * tops) * ROWS - SCALE / 2,
        (int)(item - row * strips) * COLUMNS, output + image * SCALE * SCALE * image_size);
  }
}

// logits (batch, classes, height, width) -> output (batch, SCALE height, SCALE width). WIDEST: columns of a
// strip.
template <int SCALE, int WIDEST, int ROWS, typename T>
DEVICE void upsample_argmax(const T* __restrict__ logits, int batch, int classes, int height, int width,
                            int* __restrict__ output) {
  if (width % WIDEST == 0)
    upsample_argmax_strips<SCALE, WIDEST, ROWS>(logits, batch, classes, height, width, output);
  else if (WIDEST > 4 && width % 4 == 0)
    upsample_argmax_strips<SCALE, (WIDEST > 4 ? 4 : 1), ROWS>(logits, batch, classes, height, width, output);
  else if (WIDEST > 2 && width % 2 == 0)
    upsample_argmax_strips<SCALE, (WIDEST > 2 ? 2 : 1), ROWS>(logits, batch, classes, height, width, output);
  else
    upsample_argmax_strips<SCALE, 1, ROWS>(logits, batch, classes, height, width, output);
}

// ---------------------------------------------------------------------------------------------------------
// Entry points. launch.py holds their names and the numbers that they are launched with.
// ---------------------------------------------------------------------------------------------------------

#define UPSAMPLE_ADD(NAME, T, CORNERS)                                                                     \
  extern "C" __global__ void __launch_bounds__(256, 3)                                                     \
      NAME(const T* __restrict__ input, const T* __restrict__ residual, int planes, int height, int width, \
           T* __restrict__ output) {                                                                       \
    upsample_add<CORNERS>(input, residual, planes, height, width, output);                                 \
  }
UPSAMPLE_ADD(upsample_add_f32_corners, float, true)
UPSAMPLE_ADD(upsample_add_f32_centres, float, false)
UPSAMPLE_ADD(upsample_add_f16_corners, Half, true)
UPSAMPLE_ADD(upsample_add_f16_centres, Half, false)

#define UPSAMPLE_ADD_HWC8(NAME, CORNERS)                                                                         \
  extern "C" __global__ void __launch_bounds__(256, 3)                                                           \
      NAME(const Half* __restrict__ input, const Half* __restrict__ residual, int batch, int groups, int height, \
           int width, Half* __restrict__ output) {                                                               \
    upsample_add_hwc8<CORNERS>(input, residual, batch, groups, height, width, output);                           \
  }
UPSAMPLE_ADD_HWC8(upsample_add_f16_hwc8_corners, true)
UPSAMPLE_ADD_HWC8(upsample_add_f16_hwc8_centres, false)

// `wide` strips have 32 outputs: the fewest loads an output. `slim` ones have 16: twice the threads, for
// small work.
#define UPSAMPLE_ARGMAX(NAME, T, SCALE, COLUMNS, ROWS)                                                              \
  extern "C" __global__ void __launch_bounds__(128, SCALE * COLUMNS * ROWS > 16 ? 4 : 5)                            \
      NAME(const T* __restrict__ logits, int batch, int classes, int height, int width, int* __restrict__ output) { \
    upsample_argmax<SCALE, COLUMNS, ROWS>(logits, batch, classes, height, width, output);                           \
  }
UPSAMPLE_ARGMAX(upsample_argmax_x2_f32_wide, float, 2, 4, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x2_f32_slim, float, 2, 2, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x2_f16_wide, Half, 2, 8, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x2_f16_slim, Half, 2, 4, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x4_f32_wide, float, 4, 2, 4)
UPSAMPLE_ARGMAX(upsample_argmax_x4_f32_slim, float, 4, 2, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x4_f16_wide, Half, 4, 2, 4)
UPSAMPLE_ARGMAX(upsample_argmax_x4_f16_slim, Half, 4, 2, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x16_f32_wide, float, 16, 1, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x16_f32_slim, float, 16, 1, 1)
UPSAMPLE_ARGMAX(upsample_argmax_x16_f16_wide, Half, 16, 1, 2)
UPSAMPLE_ARGMAX(upsample_argmax_x16_f16_slim, Half, 16, 1, 1)

// The tensors behind logits only lend their shapes.
#define RESIZE_ARGMAX(NAME, T)                                                                                      \
  extern "C" __global__ void __launch_bounds__(128, 4)                                                              \
      NAME(const T* __restrict__ logits, const void*, const void*, const void*, int batch, int classes, int height, \
           int width, int network_height, int network_width, int image_height, int image_width,                 \
           int* __restrict__ output) {                                                                              \
    resize_argmax(logits, batch, classes,                                                                           \
                  {height, width, network_height, network_width, image_height, image_width}, output);           \
  }
RESIZE_ARGMAX(resize_argmax_f32, float)
RESIZE_ARGMAX(resize_argmax_f16, Half)
