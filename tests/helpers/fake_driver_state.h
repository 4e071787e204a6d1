// What `fake_driver.c` holds: memory, and work that is queued, recorded, and run when it is waited for.
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { COPY, KERNEL, HOST, RECORD, WAIT };
enum { MAX = 4096, ARGUMENTS = 16 };
typedef struct { char name[64]; void (*launch)(int, int, void **); int inputs, scalars; } Kernel;
typedef struct { int alive; struct Stream *on; long sequence; } Event;
typedef struct Op {
  int kind;
  long sequence;
  void *to;
  const void *from;
  void *staged;  // a copy from pageable memory, which the driver reads before it returns
  size_t size;
  Kernel *kernel;
  int grid, block;
  uint64_t arguments[ARGUMENTS];
  void (*host)(void *);
  Event event;
  struct Op *next;
} Op;
typedef struct Stream {
  int alive, blocking, recording, spoiled;  // recording: 0, or 1 + the mode
  pthread_t recorder;
  Op *first, **last;  // queued
  Op *recorded, **end;
} Stream;
typedef struct { int alive; Op *ops; } Graph;
typedef struct { char *base; size_t size; int kind, test; } Range;  // kind 0: freed, 1: device, 2: pinned, 3: lent

static pthread_mutex_t lock;
static Range ranges[MAX];
static Stream streams[MAX];
static Event events[MAX];
static Graph graphs[MAX];
static Kernel kernels[64];
static int range_count, stream_count, event_count, graph_count, kernel_count, fault, test;
static long sequence;
static __thread int depth;  // of this thread's contexts
static char context;

int alive = 0;  // things that this test made and did not give back
__attribute__((constructor)) static void start(void) {
  pthread_mutexattr_t recursive;
  pthread_mutexattr_init(&recursive);
  pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&lock, &recursive);
  stream_count = 1;  // the first is the default stream
  streams[0] = (Stream){.alive = 1, .blocking = 1};
  streams[0].last = &streams[0].first;
}
static int leave(int status) { return pthread_mutex_unlock(&lock), status; }
#define ENTER                                    \
  pthread_mutex_lock(&lock);                     \
  if (fault) return leave(fault);                \
  if (!depth) return leave(201)
#define REQUIRE(condition, status) if (!(condition)) return leave(status)

void fake_reset(void) {  // for the next test: what nobody waited for is dropped
  fault = kernel_count = alive = 0;
  test++;
  for (int i = 0; i < range_count; i++)
    if (ranges[i].kind == 3) ranges[i] = ranges[--range_count], i--;
  for (int i = 0; i < stream_count; i++) streams[i].first = 0, streams[i].last = &streams[i].first;
}
void fake_kernel(const char *name, void *launch, int inputs, int integers) {
  Kernel *kernel = &kernels[kernel_count++];
  strncpy(kernel->name, name, 63);
  kernel->launch = (void (*)(int, int, void **))launch;
  kernel->inputs = inputs, kernel->scalars = integers;
}

// Memory.

static Range *range_of(const void *address, size_t size, int kind) {
  for (int i = 0; i < range_count; i++) {
    Range *r = &ranges[i];
    if ((r->kind == kind || (kind == 1 && r->kind == 3)) && (char *)address >= r->base && (char *)address + size <= r->base + r->size) return r;
  }
  return 0;
}
int fake_is_device(const void *address, size_t size) {
  pthread_mutex_lock(&lock);
  return leave(range_of(address, size, 1) != 0);
}
void fake_lend(void *address, size_t size) {  // memory of another library counts as the GPU's
  pthread_mutex_lock(&lock);
  if (!range_of(address, size, 1)) ranges[range_count++] = (Range){address, size, 3, test};
  pthread_mutex_unlock(&lock);
}
static int is_freed(const void *address, size_t size) {
  for (int i = 0; i < range_count; i++)
    if (!ranges[i].kind && (char *)address + size > ranges[i].base && (char *)address < ranges[i].base + ranges[i].size)
      return 1;
  return 0;
}
static int give(void **pointer, size_t size, int kind) {
  void *made;
  if (size > 1 << 30 || range_count == MAX || posix_memalign(&made, 512, size ? size : 1)) return 2;
  memset(made, 0xAA, size);
  ranges[range_count++] = (Range){made, size, kind, test};
  return *pointer = made, alive++, 0;
}
static int take_back(void *pointer, int kind) {  // the address is not given out again
  for (Range *r = ranges; r < ranges + range_count; r++)
    if (pointer && r->base == pointer && r->kind == kind)
      return memset(r->base, 0xDD, r->size), r->kind = 0, alive -= r->test == test, 0;
  return 1;
}

// Queued and recorded work.

static Stream *stream_of(void *handle) {
  if ((uintptr_t)handle <= 2) return &streams[0];
  Stream *s = handle;
  return s >= streams && s < streams + stream_count && s->alive ? s : 0;
}
static int unsafe(void) {  // whether this thread is recording; the call spoils it
  int any = 0;
  for (int i = 0; i < stream_count; i++) {
    Stream *s = &streams[i];
    if (s->recording && (s->recording == 1 || pthread_equal(s->recorder, pthread_self()))) any = s->spoiled = 1;
  }
  return any;
}
static int default_is_unusable(void) {
  int any = 0;
  for (int i = 1; i < stream_count; i++)
    if (streams[i].alive && streams[i].blocking && streams[i].recording) any = streams[i].spoiled = 1;
  return any;
}
static int queue(void *handle, Op op) {
  Stream *s = stream_of(handle);
  if (!s) return 400;
  if (s == streams && default_is_unusable()) return 906;
  Op *made = malloc(sizeof op);
  *made = op;
  made->next = 0, made->sequence = ++sequence;
  if (s->recording)
    *s->end = made, s->end = &made->next;
  else
    *s->last = made, s->last = &made->next;
  return 0;
}
static int run_stream(Stream *s, long until);
static int run_op(Op *op) {
  if (op->kind == COPY) {
    const void *from = op->staged ? op->staged : op->from;
    if (is_freed(op->to, op->size) || (!op->staged && is_freed(op->from, op->size))) return fault = 700;
    memcpy(op->to, from, op->size);
  } else if (op->kind == KERNEL) {
    void *addresses[ARGUMENTS];
    int count = op->kernel->inputs + op->kernel->scalars + 1;
    for (int i = 0; i < count; i++) {
      int is_pointer = i < op->kernel->inputs || i == count - 1;
      if (is_pointer && op->arguments[i] && !range_of((void *)op->arguments[i], 1, 1)) return fault = 700;
      addresses[i] = &op->arguments[i];
    }
    op->kernel->launch(op->grid, op->block, addresses);
  } else if (op->kind == HOST) {
    op->host(op->to);
  } else if (op->kind == WAIT && op->event.on) {
    return run_stream(op->event.on, op->event.sequence);
  }
  return 0;
}
static int run_stream(Stream *s, long until) {  // all that was queued up to that number
  while (s->first && s->first->sequence <= until) {
    Op *op = s->first;
    if (!(s->first = op->next)) s->last = &s->first;
    if (s == streams)  // the default stream waits for all that are ordered with it, and they for it
      for (int i = 1; i < stream_count && !fault; i++)
        if (streams[i].blocking) run_stream(&streams[i], op->sequence);
    if (s != streams && s->blocking) run_stream(streams, op->sequence);
    int status = fault ? fault : run_op(op);
    free(op->staged), free(op);
    if (status) return status;
  }
  return fault;
}
