// Stand-ins for what the kernels use of CUDA, and a launcher: so that g++ compiles the kernels' own source and Python
// runs it. tests/helpers/cpu_kernels.py includes the sources behind this file, and then has a LAUNCHER(name) for each kernel.
#include <cmath>
#include <cstring>
#include <utility>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index { unsigned x, y, z; };
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

struct Half { unsigned short bits; };

inline float to_float(Half value) {
  _Float16 half;
  std::memcpy(&half, &value, sizeof half);
  return (float)half;
}
inline void from_float(float value, Half& result) {
  const _Float16 half = (_Float16)value;
  std::memcpy(&result, &half, sizeof half);
}
inline void unpack(unsigned halves, float& low, float& high) {
  low = to_float(Half{(unsigned short)halves});
  high = to_float(Half{(unsigned short)(halves >> 16)});
}
inline void copy_if(bool condition, float value, float& target) {
  if (condition) target = value;
}
inline void prefetch_to_l2(const void*) {}
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }

// `arguments` as in cuLaunchKernel: a pointer to each argument. Threads run one after another.
template <typename... Types, std::size_t... I>
static void run(void (*kernel)(Types...), int grid, int block, void** arguments, std::index_sequence<I...>) {
  gridDim = {(unsigned)grid, 1, 1};
  blockDim = {(unsigned)block, 1, 1};
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(*static_cast<Types*>(arguments[I])...);
}
template <typename... Types>
static void run(void (*kernel)(Types...), int grid, int block, void** arguments) {
  run(kernel, grid, block, arguments, std::index_sequence_for<Types...>());
}
#define LAUNCHER(NAME) \
  extern "C" void launch_##NAME(int grid, int block, void** arguments) { run(NAME, grid, block, arguments); }
