// What the kernels share: FP16, the loop over a grid's work, and whole-number limits.
//
// Files of kernels are joined, this one first, and hold no #include, so that NVRTC compiles them as they are and g++
// compiles them behind the stand-ins of tests/helpers/cuda_on_cpu.h. Parameters are input pointers, int32 scalars, output
// pointers, as TensorRT's quick plugins pass them. Tensors hold fewer than 2^31 elements.

#define DEVICE __device__ __forceinline__

#ifdef __CUDACC__
struct Half {
  unsigned short bits;
};

DEVICE float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

// target = value, where `condition` holds; as an addition of -0, which changes no number. The units that select are
// half as many as those that add, and the loop over classes already keeps them busy with comparisons.
DEVICE void copy_if(bool condition, float value, float& target) {
  asm("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p add.f32 %0, %1, 0f80000000; }"
      : "+f"(target)
      : "f"(value), "r"((int)condition));
}
#endif

DEVICE float to_float(float value) { return value; }

DEVICE unsigned first_item() { return blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE unsigned item_stride() { return gridDim.x * blockDim.x; }

DEVICE int at_most(int value, int limit) { return value < limit ? value : limit; }
DEVICE int at_least(int value, int limit) { return value > limit ? value : limit; }

// The weights of an output's two taps.
struct Pair {
  float before, after;
};
