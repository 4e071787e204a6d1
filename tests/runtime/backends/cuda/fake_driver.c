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

// What the cuda-bindings call of it, on host memory, for tests/runtime/backends/cuda/test_driver.py. Copies happen at
// once, or when a graph that recorded them is launched. As the driver does, it refuses calls without a context (201),
// memory that it did not give (1) and work that is not recorded but waits while a stream is captured (900).
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct { void *to; const void *from; size_t size; } Copy;
static int context, capturing, copies;
static Copy recorded[8];
int alive = 0;
static void *given[64];

static int give(void **pointer, size_t size) {
  if (!context) return 201;
  if (size > 1 << 30) return 2;
  for (int i = 0; i < 64; i++)
    if (!given[i]) return *pointer = given[i] = malloc(size), alive++, 0;
  return 2;
}
static int take_back(void *pointer) {
  if (!context) return 201;
  for (int i = 0; i < 64; i++)
    if (pointer && given[i] == pointer) return free(pointer), given[i] = 0, alive--, 0;
  return 1;
}
static int copy(void *to, const void *from, size_t size, void *on) {
  if (!context) return 201;
  if (on == 0) return 1;
  if (capturing) return recorded[copies++] = (Copy){to, from, size}, 0;
  return memcpy(to, from, size), 0;
}

int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDriverGetVersion(int *version) { return *version = 13020, 0; }
int cuDeviceGetCount(int *count) { return *count = getenv("FAKE_NO_GPU") ? 0 : 1, 0; }
int cuDeviceGet(int *device, int index) { return *device = 7, index ? 101 : 0; }
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "Fake H100", length), device == 7 ? 0 : 101; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {  // 75, 76: compute capability
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
  return device == 7 ? 0 : 101;
}
int cuDevicePrimaryCtxRetain(void **made, int device) { return *made = &context, device == 7 ? 0 : 101; }
int cuCtxPushCurrent(void *pushed) { return pushed == &context ? context++, 0 : 201; }
int cuCtxPopCurrent(void **popped) { return context ? *popped = &context, context--, 0 : 201; }
int cuMemAlloc(void **pointer, size_t size) { return capturing ? 900 : give(pointer, size); }
int cuMemFree(void *pointer) { return take_back(pointer); }
int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) { return flags ? 1 : give(pointer, size); }
int cuMemFreeHost(void *pointer) { return take_back(pointer); }
int cuStreamCreate(void **made, unsigned flags) { return flags ? 1 : give(made, 8); }
int cuStreamDestroy(void *on) { return take_back(on); }
int cuStreamSynchronize(void *on) { return !context ? 201 : capturing ? 900 : on ? 0 : 1; }
int cuCtxSynchronize(void) { return !context ? 201 : capturing ? 900 : 0; }
int cuMemcpyHtoDAsync(void *to, const void *from, size_t size, void *on) { return copy(to, from, size, on); }
int cuMemcpyDtoHAsync(void *to, const void *from, size_t size, void *on) { return copy(to, from, size, on); }
int cuStreamBeginCapture(void *on, int mode) {  // 1: thread-local
  return capturing || mode != 1 || !on ? 1 : (capturing = 1, copies = 0);
}
int cuStreamEndCapture(void *on, void **graph) { return capturing && on ? capturing = 0, give(graph, 8) : 1; }
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  return flags || !graph ? 1 : give(executable, 8);
}
int cuGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
  return cuGraphInstantiateWithFlags(executable, graph, flags);
}
int cuGraphDestroy(void *graph) { return take_back(graph); }
int cuGraphExecDestroy(void *executable) { return take_back(executable); }
int cuGraphLaunch(void *executable, void *on) {
  if (!context || !executable || !on) return 1;
  for (int i = 0; i < copies; i++) memcpy(recorded[i].to, recorded[i].from, recorded[i].size);
  return 0;
}
int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = library ? dlsym(library, symbol) : 0;
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : 500;
}
int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, 0);
}
