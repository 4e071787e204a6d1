// What examples/cpp/segment.cpp and runtime/cpp call of the CUDA runtime, on host memory; the GPU is of sm_90.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

cudaError_t cudaMalloc(void** address, size_t size) {
    return posix_memalign(address, 512, size) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* address) { return free(address), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t size, cudaMemcpyKind, cudaStream_t) {
    return memcpy(to, from, size), cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t*) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned flags) {
    return flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
char const* cudaGetErrorString(cudaError_t) { return "a CUDA error"; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    return *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0, cudaSuccess;
}
