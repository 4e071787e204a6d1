// Argmax of logits that mmsegmentation resizes twice: to the network's input size, then to the image's own.
//
// The first maximum wins, and the first NaN wins over every number, as in numpy. Weights are ratios of exact integers,
// never differences of rounded coordinates: a coordinate near 500 in FP32 would cost its fraction nine bits. Arithmetic
// is FP32 throughout. A tap of weight zero does not count, whatever it holds (0 x infinity is no NaN here).

DEVICE float minus_infinity() { return -1.0f / 0.0f; }

// Any non-finite tap turns this sum into NaN. The fast loops below know no NaN; a thread that met a
// non-finite tap computes its pixels again, one by one, with `careful_argmax`. This check costs one operation
// a tap, a comparison that knows NaN one for each output and class.
DEVICE float suspect(float sum, float tap) { return fmaf(tap, 0.0f, sum); }
DEVICE bool is_nan(float value) { return value != value; }

// One side's taps of one output pixel: the output is the sum of weight[i] x source[index[i]].
template <int TAPS>
struct Side {
  int index[TAPS];
  float weight[TAPS];
};

template <int TAPS, typename T>
DEVICE int careful_argmax(const T* logits, int classes, int height, int width, Side<TAPS> rows, Side<TAPS> columns) {
  float best = minus_infinity();
  int winner = 0;
#pragma unroll 1
  for (int c = 0; c < classes; ++c) {
    float value = 0.0f;
#pragma unroll
    for (int i = 0; i < TAPS; ++i) {
      if (rows.weight[i] == 0.0f) continue;
      float across = 0.0f;
#pragma unroll
      for (int j = 0; j < TAPS; ++j) {
        if (columns.weight[j] == 0.0f) continue;
        const float tap = to_float(logits[((long long)c * height + rows.index[i]) * width + columns.index[j]]);
        across = fmaf(columns.weight[j], tap, across);
      }
      value = fmaf(rows.weight[i], across, value);
    }
    if (value > best || (is_nan(value) && !is_nan(best))) {
      best = value;
      winner = c;
    }
  }
  return winner;
}

// Both resizes are linear, so one output is a weighted sum of at most four source pixels a side. Half-pixel
// centres: output o of `to` lies at ((2 o + 1) from - to) / (2 to) of `from`. Sides stay below 2^15.
struct Position {
  int index;
  Pair weights;  // of the pixels `index` and `index` + 1
};

DEVICE Position position(int output, int from, int to) {
  const int numerator = at_least((2 * output + 1) * from - to, 0), index = numerator / (2 * to);
  const int rest = numerator - index * 2 * to;
  return {index, {(float)(2 * to - rest) / (float)(2 * to), (float)rest / (float)(2 * to)}};
}

DEVICE Side<4> composed_side(int output, int source, int network, int image) {
  const Position outer = position(output, network, image);
  const Position first = position(outer.index, source, network);
  const Position second = position(at_most(outer.index + 1, network - 1), source, network);
  const int last = source - 1;
  return {{first.index, at_most(first.index + 1, last), second.index, at_most(second.index + 1, last)},
          {outer.weights.before * first.weights.before, outer.weights.before * first.weights.after,
           outer.weights.after * second.weights.before, outer.weights.after * second.weights.after}};
}

// Where the first resize does not shrink, the four taps lie within three neighbours, whose first is `start`.
struct Window {
  int start;
  float weight[3];
};

DEVICE Window window(Side<4> side, int source) {
  Window result = {at_most(side.index[0], source - 3), {0.0f, 0.0f, 0.0f}};
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 3; ++j)
      if (side.index[i] - result.start == j) result.weight[j] += side.weight[i];
  return result;
}

struct Sizes {
  int height, width, network_height, network_width, image_height, image_width;
};

// A thread owns STRIP_ROWS rows of one output column and walks down the source rows that they need;
// neighbouring threads own neighbouring columns and read the same few taps. GROUP classes go together, for
// loads in flight.
constexpr int STRIP_ROWS = 8, GROUP = 2;

template <typename T>
DEVICE float across(const T* row, const Window& columns) {
  return fmaf(columns.weight[2], to_float(row[2]),
              fmaf(columns.weight[1], to_float(row[1]), columns.weight[0] * to_float(row[0])));
}

// Fills `winner`; returns false where a non-finite logit calls for `careful_argmax`.
template <typename T>
DEVICE bool resize_argmax_strip(const T* __restrict__ logits, int classes, const Sizes& sizes, int top, int column,
                                int (&winner)[STRIP_ROWS]) {
  const Window columns =
      window(composed_side(column, sizes.width, sizes.network_width, sizes.image_width), sizes.width);
  Window rows[STRIP_ROWS];
  float best[STRIP_ROWS], doubt = 0.0f;
#pragma unroll
  for (int r = 0; r < STRIP_ROWS; ++r) {
    const int row = at_most(top + r, sizes.image_height - 1);
    rows[r] = window(composed_side(row, sizes.height, sizes.network_height, sizes.image_height), sizes.height);
    best[r] = minus_infinity();
    winner[r] = 0;
  }

  const long long plane_size = (long long)sizes.height * sizes.width;
#pragma unroll 1
  for (int c = 0; c < classes; c += GROUP) {
    const T* plane[GROUP];  // past the last class the last one again, which cannot win against itself
    float near[GROUP][3];
    int row = rows[0].start;
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
      plane[g] = logits + at_most(c + g, classes - 1) * plane_size + row * sizes.width + columns.start;
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        near[g][i] = across(plane[g], columns);
        doubt = suspect(doubt, near[g][i]);
        if (i < 2) plane[g] += sizes.width;
      }
    }
#pragma unroll
    for (int r = 0; r < STRIP_ROWS; ++r) {
      for (; row < rows[r].start; ++row) {
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
          plane[g] += sizes.width;
          near[g][0] = near[g][1];
          near[g][1] = near[g][2];
          near[g][2] = across(plane[g], columns);
          doubt = suspect(doubt, near[g][2]);
        }
      }
#pragma unroll
      for (int g = 0; g < GROUP; ++g) {
        const float value =
            fmaf(rows[r].weight[2], near[g][2], fmaf(rows[r].weight[1], near[g][1], rows[r].weight[0] * near[g][0]));
        const bool larger = value > best[r];
        copy_if(larger, value, best[r]);
        if (larger) winner[r] = c + g;
      }
    }
  }
  return !is_nan(doubt);
}

// logits (batch, classes, height, width) -> output (batch, image_height, image_width).
template <typename T, typename Class>
DEVICE void resize_argmax(const T* __restrict__ logits, int batch, int classes, Sizes sizes,
                          Class* __restrict__ output) {
  const bool windowed = sizes.height >= 3 && sizes.width >= 3 && sizes.network_height >= sizes.height &&
                        sizes.network_width >= sizes.width;
  const unsigned strips = (sizes.image_height + STRIP_ROWS - 1) / STRIP_ROWS;
  const unsigned items = batch * strips * sizes.image_width;
  for (unsigned item = first_item(); item < items; item += item_stride()) {
    const unsigned strip = item / sizes.image_width, image = strip / strips;
    const int column = (int)(item - strip * sizes.image_width), top = (int)(strip - image * strips) * STRIP_ROWS;
    const T* own = logits + (long long)image * classes * sizes.height * sizes.width;
    Class* target = output + ((long long)image * sizes.image_height + top) * sizes.image_width + column;
    int winner[STRIP_ROWS];
    const bool done = windowed && resize_argmax_strip(own, classes, sizes, top, column, winner);
#pragma unroll
    for (int r = 0; r < STRIP_ROWS; ++r)
      if (done && top + r < sizes.image_height) target[(long long)r * sizes.image_width] = (Class)winner[r];
    if (done) continue;
#pragma unroll 1
    for (int r = 0; r < STRIP_ROWS && top + r < sizes.image_height; ++r)
      target[(long long)r * sizes.image_width] =
          (Class)careful_argmax<4>(own, classes, sizes.height, sizes.width,
                                   composed_side(top + r, sizes.height, sizes.network_height, sizes.image_height),
                                   composed_side(column, sizes.width, sizes.network_width, sizes.image_width));
  }
}
