// A libcuda on host memory, as strict as the driver where the runtime's order of calls is concerned.
//
// Work is lazy: what is queued runs when its stream is waited for, and not before, so that a wait that is missing shows in
// the result. Streams that were made as non-blocking are ordered with nothing. It refuses
//   201 a call without a context                        400 a stream, an event or a graph that is not alive
//   1   memory that it did not give                     700 work on memory that was freed meanwhile, or was never given
//   900 a call that a recording thread must not make    901 the end of a recording that such a call has spoiled
//   904 the end of a recording by another thread        906 the default stream while a blocking stream is recorded
// and cuCtxSynchronize during any recording, which it spoils. After 700 every call fails, as on a GPU.
//
// Kernels are those that tests register (fake_kernel), compiled for this processor.
#include <dlfcn.h>

#include "fake_driver_state.h"

// For tests/runtime/backends/cuda/test_module.py: what the launcher passed.
int load_status = 0, unloaded = 0;
char ptx[64], found[64];
unsigned launched[7];  // grid, block, shared bytes
void *stream, *pointers[3];
int scalars[2];

int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDriverGetVersion(int *version) { return *version = 13020, 0; }
int cuDeviceGetCount(int *count) { return *count = getenv("FAKE_NO_GPU") ? 0 : 1, 0; }
int cuDeviceGet(int *device, int index) { return *device = 7, index ? 101 : 0; }
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "Fake GPU", length), device == 7 ? 0 : 101; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {  // 75, 76: compute capability
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 : -1;
  return device == 7 ? 0 : 101;
}
int cuGetErrorName(int status, const char **text) {
  static const struct { int status; const char *name; } names[] = {
      {1, "CUDA_ERROR_INVALID_VALUE"},   {201, "CUDA_ERROR_INVALID_CONTEXT"},
      {400, "CUDA_ERROR_INVALID_HANDLE"}, {500, "CUDA_ERROR_NOT_FOUND"},
      {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"}};
  *text = 0;
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].status == status) *text = names[i].name;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **made, int device) { return *made = &context, device == 7 ? 0 : 101; }
int cuCtxPushCurrent(void *pushed) { return pushed == &context ? depth++, 0 : 201; }
int cuCtxPopCurrent(void **popped) { return depth ? *popped = &context, depth--, 0 : 201; }
int cuCtxSynchronize(void) {
  ENTER;
  int recording = 0;
  for (int i = 0; i < stream_count; i++)
    if (streams[i].recording) recording = streams[i].spoiled = 1;
  REQUIRE(!recording, 900);
  for (int i = 0; i < stream_count; i++) run_stream(&streams[i], sequence);
  return leave(fault);
}

int cuMemAlloc(void **pointer, size_t size) {
  ENTER;
  REQUIRE(!unsafe(), 900);
  return leave(give(pointer, size, 1));
}
int cuMemFree(void *pointer) {
  ENTER;
  REQUIRE(!unsafe(), 900);
  return leave(take_back(pointer, 1));
}
int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
  ENTER;
  REQUIRE(!unsafe(), 900);
  return leave(flags ? 1 : give(pointer, size, 2));
}
int cuMemFreeHost(void *pointer) {
  ENTER;
  REQUIRE(!unsafe(), 900);
  return leave(take_back(pointer, 2));
}
int cuMemcpyHtoDAsync(void *to, const void *from, size_t size, void *on) {
  ENTER;
  REQUIRE(range_of(to, size, 1), 1);
  Op op = {.kind = COPY, .to = to, .from = from, .size = size};
  Stream *s = stream_of(on);
  if (s && !s->recording && !range_of(from, size, 2)) op.staged = memcpy(malloc(size), from, size);
  return leave(queue(on, op));
}
int cuMemcpyDtoHAsync(void *to, const void *from, size_t size, void *on) {
  ENTER;
  REQUIRE(range_of(from, size, 1), 1);
  int status = queue(on, (Op){.kind = COPY, .to = to, .from = from, .size = size});
  Stream *s = stream_of(on);
  if (!status && !s->recording && !range_of(to, size, 2)) status = run_stream(s, sequence);  // pageable: it waits
  return leave(status);
}
int cuMemcpyDtoDAsync(void *to, const void *from, size_t size, void *on) {
  ENTER;
  REQUIRE(range_of(to, size, 1) && range_of(from, size, 1), 1);
  return leave(queue(on, (Op){.kind = COPY, .to = to, .from = from, .size = size}));
}

int cuStreamCreate(void **made, unsigned flags) {
  ENTER;
  REQUIRE(flags <= 1 && stream_count < MAX, 1);
  Stream *s = &streams[stream_count++];
  *s = (Stream){.alive = 1, .blocking = !flags};
  s->last = &s->first;
  return *made = s, alive++, leave(0);
}
int cuStreamDestroy(void *on) {
  ENTER;
  Stream *s = stream_of(on);
  REQUIRE(s && s != streams, 400);
  int status = run_stream(s, sequence);
  return s->alive = 0, alive--, leave(status);
}
int cuStreamSynchronize(void *on) {
  ENTER;
  Stream *s = stream_of(on);
  REQUIRE(s, 400);
  if (s->recording) return s->spoiled = 1, leave(900);
  REQUIRE(s != streams || !default_is_unusable(), 906);
  return leave(run_stream(s, sequence));
}
int cuLaunchHostFunc(void *on, void (*host)(void *), void *data) {
  ENTER;
  return leave(queue(on, (Op){.kind = HOST, .host = host, .to = data}));
}
int cuEventCreate(void **made, unsigned flags) {
  ENTER;
  REQUIRE(event_count < MAX, 2);
  (void)flags;
  events[event_count] = (Event){.alive = 1};
  return *made = &events[event_count++], alive++, leave(0);
}
int cuEventRecord(void *event, void *on) {
  ENTER;
  Event *e = event;
  REQUIRE(e->alive, 400);
  int status = queue(on, (Op){.kind = RECORD});
  if (!status) e->on = stream_of(on), e->sequence = sequence;
  return leave(status);
}
int cuStreamWaitEvent(void *on, void *event, unsigned flags) {
  ENTER;
  Event *e = event;
  REQUIRE(e->alive && !flags, 400);
  return leave(queue(on, (Op){.kind = WAIT, .event = *e}));
}
int cuEventDestroy_v2(void *event) {
  ENTER;
  Event *e = event;
  REQUIRE(e->alive, 400);
  return e->alive = 0, alive--, leave(0);
}

int cuStreamIsCapturing(void *on, int *recording) {
  ENTER;
  Stream *s = stream_of(on);
  REQUIRE(s, 400);
  return *recording = s->recording ? 1 + s->spoiled : 0, leave(0);
}
int cuStreamBeginCapture(void *on, int mode) {
  ENTER;
  Stream *s = stream_of(on);
  REQUIRE(s && s != streams && !s->recording, s == streams ? 900 : 1);
  s->recording = 1 + mode, s->spoiled = 0, s->recorder = pthread_self();
  s->recorded = 0, s->end = &s->recorded;
  return leave(0);
}
int cuStreamEndCapture(void *on, void **graph) {
  ENTER;
  Stream *s = stream_of(on);
  REQUIRE(s && s->recording, 1);
  REQUIRE(s->recording != 2 || pthread_equal(s->recorder, pthread_self()), 904);
  s->recording = 0;
  *graph = 0;
  REQUIRE(!s->spoiled, 901);
  REQUIRE(graph_count < MAX, 2);
  graphs[graph_count] = (Graph){1, s->recorded};
  return *graph = &graphs[graph_count++], alive++, leave(0);
}
static Graph *graph_of(void *graph) {
  Graph *g = graph;
  return g >= graphs && g < graphs + graph_count && g->alive ? g : 0;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  ENTER;
  REQUIRE(graph_of(graph) && !flags && graph_count < MAX, 1);
  REQUIRE(!unsafe(), 900);
  graphs[graph_count] = *graph_of(graph);
  return *executable = &graphs[graph_count++], alive++, leave(0);
}
int cuGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
  return cuGraphInstantiateWithFlags(executable, graph, flags);
}
int cuGraphDestroy(void *graph) {
  ENTER;
  REQUIRE(graph_of(graph), 400);
  return graph_of(graph)->alive = 0, alive--, leave(0);
}
int cuGraphExecDestroy(void *executable) { return cuGraphDestroy(executable); }
int cuGraphLaunch(void *executable, void *on) {
  ENTER;
  Graph *g = graph_of(executable);
  REQUIRE(g, 400);
  int status = 0;
  for (Op *op = g->ops; op && !status; op = op->next) status = queue(on, *op);
  return leave(status);
}

int cuModuleLoadData(void **module, const char *image) {
  ENTER;
  strncpy(ptx, image, sizeof ptx - 1);
  return *module = &ptx, alive++, leave(load_status);
}
int cuModuleUnload(void *module) {
  ENTER;
  unloaded += module == &ptx;
  return alive--, leave(0);
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  ENTER;
  REQUIRE(module == &ptx && strcmp(name, "missing"), 500);
  strncpy(found, name, sizeof found - 1);
  *function = &found;
  for (int i = 0; i < kernel_count; i++)
    if (!strcmp(kernels[i].name, name)) *function = &kernels[i];
  return leave(0);
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *on, void **parameters, void **extra) {
  ENTER;
  REQUIRE(function && !extra, 1);
  if (function == &found) {  // none that was registered: what was passed is kept
    const unsigned numbers[] = {gx, gy, gz, bx, by, bz, shared};
    memcpy(launched, numbers, sizeof numbers);
    stream = on;
    for (int i = 0; i < 2; i++) pointers[i] = *(void **)parameters[i], scalars[i] = *(int *)parameters[2 + i];
    return pointers[2] = *(void **)parameters[4], leave(0);
  }
  Op op = {.kind = KERNEL, .kernel = function, .grid = (int)gx, .block = (int)bx};
  int count = op.kernel->inputs + op.kernel->scalars + 1;
  for (int i = 0; i < count; i++) {
    int is_pointer = i < op.kernel->inputs || i == count - 1;
    memcpy(&op.arguments[i], parameters[i], is_pointer ? sizeof(void *) : sizeof(int));
  }
  return leave(queue(on, op));
}

int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
  static const char *const renamed[] = {"cuEventDestroy"};  // their older forms are gone
  char name[64];
  strncpy(name, symbol, 60);
  for (unsigned i = 0; i < sizeof renamed / sizeof *renamed; i++)
    if (!strcmp(symbol, renamed[i])) strcat(name, "_v2");
  (void)version, (void)flags;
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = library ? dlsym(library, name) : 0;
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : 500;
}
int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, 0);
}
