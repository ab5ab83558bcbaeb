/* A stand-in for libcuda.so.1 on the CPU, for the calls of deploykit's CUDA device.
 *
 * It checks what the real driver checks: a current context, live memory, known handles. Work is done
 * at once, except that a capturing stream records it. It proves that names, order and types of the
 * arguments are right on their way through cuda-bindings; it says nothing about a GPU.
 *
 * Each call is found by the name that cuda-bindings asks for, without the suffix of its version.
 * FAKE_CUDA_DEVICES is the number of devices. fake_fail(name, n) lets the n-th call of a function
 * fail with CUDA_ERROR_OUT_OF_MEMORY.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURE_UNMATCHED = 903 };
enum { DEVICE, HOST, STREAM, EVENT, GRAPH, EXECUTABLE, CONTEXT, MODULE, KINDS };

typedef void (*Work)(void *);
typedef struct Step { Work work; void *argument; struct Step *next; } Step;
typedef struct { Step *first, *last; } Steps;
typedef struct { int capturing; Steps steps; } Stream;
typedef struct Thing { int kind; uintptr_t start; size_t size; struct Thing *next; } Thing;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Thing *things;
static int live[KINDS];
static char primary;
static int primary_users;
static __thread void *stack[64];
static __thread int depth;
static char fail_name[64];
static int fail_countdown;

int fake_live(int kind) { return kind == CONTEXT ? primary_users : live[kind]; }
int fake_depth(void) { return depth; }
void fake_fail(const char *name, int n) { strncpy(fail_name, name, 63); fail_countdown = n; }

static int must_fail(const char *name) {
    return fail_countdown > 0 && !strcmp(name, fail_name) && --fail_countdown == 0;
}
#define ENTER() do { if (!depth || stack[depth - 1] != &primary) return INVALID_CONTEXT; \
                     if (must_fail(__func__)) return OUT_OF_MEMORY; } while (0)

static void add(int kind, uintptr_t start, size_t size) {
    Thing *thing = malloc(sizeof *thing);
    *thing = (Thing){kind, start, size, NULL};
    pthread_mutex_lock(&lock);
    thing->next = things; things = thing; live[kind]++;
    pthread_mutex_unlock(&lock);
}
static int find(int kind, uintptr_t start, size_t size) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Thing *t = things; t; t = t->next)
        found |= t->kind == kind && t->start <= start && start + size <= t->start + t->size;
    pthread_mutex_unlock(&lock);
    return found;
}
static int drop(int kind, uintptr_t start) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Thing **t = &things; *t; t = &(*t)->next)
        if ((*t)->kind == kind && (*t)->start == start) {
            Thing *gone = *t; *t = gone->next; free(gone); live[kind]--; found = 1; break;
        }
    pthread_mutex_unlock(&lock);
    return found;
}
static int is_default(void *s) { return (uintptr_t)s <= 2; }
static int is_stream(void *s) { return is_default(s) || find(STREAM, (uintptr_t)s, 1); }

static void append(Steps *steps, Work work, void *argument) {
    Step *step = malloc(sizeof *step);
    *step = (Step){work, argument, NULL};
    if (steps->last) steps->last->next = step; else steps->first = step;
    steps->last = step;
}
/* Queue work on a stream: what TensorRT would do with kernels. */
Status fake_enqueue(void *stream, Work work, void *argument) {
    if (is_default(stream) || !is_stream(stream)) return INVALID_HANDLE;
    Stream *s = stream;
    if (s->capturing) append(&s->steps, work, argument); else work(argument);
    return OK;
}

Status cuInit(unsigned flags) {
    const char *count = getenv("FAKE_CUDA_DEVICES");
    return flags ? INVALID_VALUE : count && !atoi(count) ? NO_DEVICE : OK;
}
/* NVRTC asks for it and does without. */
Status cuGetExportTable(const void **table, const void *id) { (void)table; (void)id; return NOT_FOUND; }
Status cuDriverGetVersion(int *v) { *v = 13020; return OK; }
Status cuDeviceGetCount(int *n) {
    const char *count = getenv("FAKE_CUDA_DEVICES");
    *n = count ? atoi(count) : 1; return OK;
}
Status cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? INVALID_DEVICE : OK; }
Status cuDeviceGetName(char *name, int n, int device) {
    (void)device; strncpy(name, "stand-in", n); return OK;
}
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    if (attribute != 75 && attribute != 76) return INVALID_VALUE;
    *value = attribute == 75 ? 8 : 6; return OK;
}
Status cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device; *context = &primary; __sync_fetch_and_add(&primary_users, 1); return OK;
}
Status cuDevicePrimaryCtxRelease(int device) {
    (void)device; __sync_fetch_and_sub(&primary_users, 1); return OK;
}
Status cuCtxPushCurrent(void *context) {
    if (context != &primary || depth == 64) return INVALID_CONTEXT;
    stack[depth++] = context; return OK;
}
Status cuCtxPopCurrent(void **context) {
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth]; return OK;
}
static Status allocate(int kind, uintptr_t *address, size_t size) {
    void *block;
    if (!size) return INVALID_VALUE;
    if (posix_memalign(&block, 256, size)) return OUT_OF_MEMORY;
    memset(block, 0xCD, size);
    *address = (uintptr_t)block;
    add(kind, *address, size);
    return OK;
}
static Status release(int kind, uintptr_t address) {
    if (!drop(kind, address)) return INVALID_VALUE;
    free((void *)address);
    return OK;
}
Status cuMemAlloc(uintptr_t *address, size_t size) { ENTER(); return allocate(DEVICE, address, size); }
Status cuMemFree(uintptr_t address) { ENTER(); return release(DEVICE, address); }
Status cuMemHostAlloc(void **block, size_t size, unsigned flags) {
    ENTER(); return flags ? INVALID_VALUE : allocate(HOST, (uintptr_t *)block, size);
}
Status cuMemFreeHost(void *block) { ENTER(); return release(HOST, (uintptr_t)block); }
static Status copy(int to, uintptr_t target, int from, uintptr_t source, size_t n, void *stream) {
    if (!is_stream(stream)) return INVALID_HANDLE;
    if (!find(to, target, n) || !find(from, source, n)) return INVALID_VALUE;
    if (!is_default(stream) && ((Stream *)stream)->capturing) return INVALID_VALUE;
    memmove((void *)target, (void *)source, n);
    return OK;
}
Status cuMemcpyHtoDAsync(uintptr_t to, void *from, size_t n, void *stream) {
    ENTER(); return copy(DEVICE, to, HOST, (uintptr_t)from, n, stream);
}
Status cuMemcpyDtoHAsync(void *to, uintptr_t from, size_t n, void *stream) {
    ENTER(); return copy(HOST, (uintptr_t)to, DEVICE, from, n, stream);
}
Status cuMemcpyDtoDAsync(uintptr_t to, uintptr_t from, size_t n, void *stream) {
    ENTER(); return copy(DEVICE, to, DEVICE, from, n, stream);
}
Status cuMemsetD8Async(uintptr_t to, unsigned char value, size_t n, void *stream) {
    ENTER();
    if (!is_stream(stream)) return INVALID_HANDLE;
    if (!find(DEVICE, to, n)) return INVALID_VALUE;
    memset((void *)to, value, n);
    return OK;
}
Status cuStreamCreate(void **stream, unsigned flags) {
    ENTER();
    if (flags != 1) return INVALID_VALUE; /* CU_STREAM_NON_BLOCKING */
    *stream = calloc(1, sizeof(Stream));
    add(STREAM, (uintptr_t)*stream, sizeof(Stream));
    return OK;
}
Status cuStreamDestroy(void *stream) { ENTER(); return release(STREAM, (uintptr_t)stream); }
Status cuStreamSynchronize(void *stream) { ENTER(); return is_stream(stream) ? OK : INVALID_HANDLE; }
Status cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    ENTER();
    return !is_stream(stream) || !find(EVENT, (uintptr_t)event, 1) ? INVALID_HANDLE
           : flags ? INVALID_VALUE : OK;
}
Status cuStreamGetCtx(void *stream, void **context) {
    ENTER();
    if (!is_stream(stream)) return INVALID_HANDLE;
    *context = &primary;
    return OK;
}
Status cuStreamBeginCapture(void *stream, int mode) {
    ENTER();
    if (is_default(stream) || !is_stream(stream)) return INVALID_HANDLE;
    if (mode != 1) return INVALID_VALUE; /* CU_STREAM_CAPTURE_MODE_THREAD_LOCAL */
    ((Stream *)stream)->capturing = 1;
    return OK;
}
Status cuStreamEndCapture(void *stream, void **graph) {
    Stream *s = stream;
    if (!is_stream(stream) || !s->capturing) return CAPTURE_UNMATCHED;
    s->capturing = 0;
    ENTER();
    Steps *steps = malloc(sizeof *steps);
    *steps = s->steps;
    s->steps = (Steps){NULL, NULL};
    add(GRAPH, (uintptr_t)steps, sizeof *steps);
    *graph = steps;
    return OK;
}
Status cuGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
    ENTER();
    if (!find(GRAPH, (uintptr_t)graph, 1)) return INVALID_HANDLE;
    if (flags) return INVALID_VALUE;
    Steps *steps = malloc(sizeof *steps);
    *steps = *(Steps *)graph;
    add(EXECUTABLE, (uintptr_t)steps, sizeof *steps);
    *executable = steps;
    return OK;
}
Status cuGraphDestroy(void *graph) { ENTER(); return release(GRAPH, (uintptr_t)graph); }
Status cuGraphLaunch(void *executable, void *stream) {
    ENTER();
    if (!find(EXECUTABLE, (uintptr_t)executable, 1) || !is_stream(stream)) return INVALID_HANDLE;
    for (Step *step = ((Steps *)executable)->first; step; step = step->next) step->work(step->argument);
    return OK;
}
Status cuGraphExecDestroy(void *executable) { ENTER(); return release(EXECUTABLE, (uintptr_t)executable); }
Status cuEventCreate(void **event, unsigned flags) {
    ENTER();
    if (flags && flags != 2) return INVALID_VALUE; /* CU_EVENT_DISABLE_TIMING */
    return allocate(EVENT, (uintptr_t *)event, 8);
}
Status cuEventDestroy(void *event) { ENTER(); return release(EVENT, (uintptr_t)event); }
Status cuEventRecord(void *event, void *stream) {
    ENTER();
    return find(EVENT, (uintptr_t)event, 1) && is_stream(stream) ? OK : INVALID_HANDLE;
}
Status cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    ENTER();
    if (!find(EVENT, (uintptr_t)start, 1) || !find(EVENT, (uintptr_t)end, 1)) return INVALID_HANDLE;
    *milliseconds = 1.0f; return OK;
}
/* A module is its PTX; a function is the name of its entry point. The launcher runs kernels. */
typedef void (*Launcher)(const char *name, const unsigned *grid, const unsigned *block, void **arguments);
static Launcher launcher;
void fake_launcher(Launcher l) { launcher = l; }
Status cuModuleLoadData(void **module, const char *ptx) {
    ENTER();
    const char *entry = strstr(ptx, ".entry ");
    if (!entry || !(*module = calloc(1, 64))) return INVALID_VALUE;
    strncpy(*module, entry + 7, strcspn(entry + 7, "( \n"));
    add(MODULE, (uintptr_t)*module, 64);
    return OK;
}
Status cuModuleUnload(void *module) { ENTER(); return release(MODULE, (uintptr_t)module); }
Status cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER();
    if (!find(MODULE, (uintptr_t)module, 1)) return INVALID_HANDLE;
    *function = module;
    return strcmp(module, name) ? NOT_FOUND : OK;
}
Status cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
    ENTER();
    if (!find(MODULE, (uintptr_t)function, 1) || !is_stream(stream)) return INVALID_HANDLE;
    if (!gx || !gy || !gz || !bx || !by || !bz || shared || extra || !launcher) return INVALID_VALUE;
    launcher(function, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, arguments);
    return OK;
}
Status cuPointerGetAttribute(void *data, int attribute, uintptr_t address) {
    ENTER();
    int device = find(DEVICE, address, 1);
    if (!device && !find(HOST, address, 1)) return INVALID_VALUE;
    if (attribute == 1) *(void **)data = &primary;             /* CONTEXT */
    else if (attribute == 2) *(unsigned *)data = device ? 2 : 1; /* MEMORY_TYPE */
    else if (attribute == 9) *(int *)data = 0;                 /* DEVICE_ORDINAL */
    else return INVALID_VALUE;
    return OK;
}
Status cuGetErrorName(Status status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
            : status == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
            : status == INVALID_HANDLE ? "CUDA_ERROR_INVALID_HANDLE"
            : status == CAPTURE_UNMATCHED ? "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"
            : "CUDA_ERROR_INVALID_VALUE";
    return OK;
}
Status cuGetErrorString(Status status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : "as its name says";
    return OK;
}

#define ROW(name) {#name, (void *)name}
static const struct { const char *name; void *function; } table[] = {
    ROW(cuInit), ROW(cuDriverGetVersion), ROW(cuDeviceGetCount), ROW(cuDeviceGet), ROW(cuDeviceGetName),
    ROW(cuDeviceGetAttribute), ROW(cuDevicePrimaryCtxRetain), ROW(cuDevicePrimaryCtxRelease),
    ROW(cuCtxPushCurrent), ROW(cuCtxPopCurrent), ROW(cuMemAlloc), ROW(cuMemFree), ROW(cuMemHostAlloc),
    ROW(cuMemFreeHost), ROW(cuMemcpyHtoDAsync), ROW(cuMemcpyDtoHAsync), ROW(cuMemcpyDtoDAsync),
    ROW(cuMemsetD8Async), ROW(cuStreamCreate), ROW(cuStreamDestroy), ROW(cuStreamSynchronize),
    ROW(cuStreamWaitEvent), ROW(cuStreamGetCtx), ROW(cuStreamBeginCapture), ROW(cuStreamEndCapture),
    {"cuGraphInstantiateWithFlags", (void *)cuGraphInstantiate}, ROW(cuGraphDestroy), ROW(cuGraphLaunch), ROW(cuGraphExecDestroy),
    ROW(cuEventCreate), ROW(cuEventDestroy), ROW(cuEventRecord), ROW(cuEventElapsedTime),
    ROW(cuModuleLoadData), ROW(cuModuleUnload), ROW(cuModuleGetFunction), ROW(cuLaunchKernel),
    ROW(cuPointerGetAttribute),
    ROW(cuGetErrorName), ROW(cuGetErrorString),
};
Status cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *result) {
    (void)version; (void)flags;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name)) {
            *function = table[i].function;
            if (result) *result = 0;
            return OK;
        }
    *function = NULL;
    if (result) *result = 1;
    return NOT_FOUND;
}
Status cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
