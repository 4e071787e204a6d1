// A libcuda that keeps what the runtime's launcher passes, for tests/runtime/backends/cuda/test_module.py.
#include <string.h>

int load_status = 0, unloaded = 0;
char ptx[64], found[64];
unsigned launched[7];  // grid, block, shared bytes
void *stream, *pointers[3];
int scalars[2];

int cuModuleLoadData(void** module, const char* image) {
  strncpy(ptx, image, sizeof ptx - 1);
  *module = &ptx;
  return load_status;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  if (module != &ptx || strcmp(name, "missing") == 0) return 500;
  strncpy(found, name, sizeof found - 1);
  *function = &found;
  return 0;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* on, void** parameters, void** extra) {
  if (function != &found || extra) return 1;
  const unsigned numbers[] = {gx, gy, gz, bx, by, bz, shared};
  memcpy(launched, numbers, sizeof numbers);
  stream = on;
  pointers[0] = *(void**)parameters[0];
  pointers[1] = *(void**)parameters[1];
  scalars[0] = *(int*)parameters[2];
  scalars[1] = *(int*)parameters[3];
  pointers[2] = *(void**)parameters[4];
  return 0;
}
int cuModuleUnload(void* module) {
  unloaded += module == &ptx;
  return 0;
}
int cuGetErrorName(int status, const char** text) {
  *text = status == 500 ? "CUDA_ERROR_NOT_FOUND" : 0;
  return 0;
}
