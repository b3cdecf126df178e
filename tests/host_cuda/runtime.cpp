// The CUDA runtime: memory whose end is guarded, copies, streams, events, graphs. Each operation is done at once.
#include "device.h"
#include <cuda_runtime_api.h>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <map>
#include <sys/mman.h>
#include <vector>

Counts counts;
std::recursive_mutex device_lock;
bool computing = true;

// ---------------------------------------------------------------- accesses out of bounds

static sigjmp_buf before_operation;
static volatile bool in_operation = false;
static struct sigaction others;                                         // the handler that was there, Python's

static void fault(int signal, siginfo_t*, void*) {
  if (in_operation) siglongjmp(before_operation, 1);
  sigaction(SIGSEGV, &others, nullptr);                                 // not ours: it happens once more
}

static int guarded(const std::function<int()>& work) {
  struct sigaction action = {}, before;
  action.sa_sigaction = fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);                                 // each time, since others come and go
  if (before.sa_sigaction != fault) others = before;
  if (sigsetjmp(before_operation, 0)) {
    in_operation = false;
    return ILLEGAL_ADDRESS;                                             // what a GPU with luck would report
  }
  in_operation = true;
  int error = work();
  in_operation = false;
  return error;
}

// ---------------------------------------------------------------- streams, and graphs of what they were given

typedef std::vector<std::function<int()>> Operations;
struct Stream { bool capturing, invalid; Operations* graph; bool blocking; int mode; };

static std::vector<std::string>* recording = nullptr;
static int captures = 0;                                                // streams being captured

static std::vector<Stream*> streams;

bool capturing(Pointer stream) { return stream && (size_t)stream > 2 && ((Stream*)stream)->capturing; }

static int give_up_if(const std::function<bool(Stream*)>& forbids, int error) {       // CUDA gives up each such capture
  bool any = false;
  for (Stream* stream : streams) if (stream->capturing && forbids(stream)) stream->invalid = any = true;
  return any ? error : SUCCESS;
}

// The default stream waits for the blocking streams, and they for it, which no capture can contain.
static int refused_beside_capture(Pointer stream) {
  if ((size_t)stream > 1) return SUCCESS;
  return give_up_if([](Stream* other) { return other->blocking; }, CAPTURE_IMPLICIT);
}

int submit(Pointer stream, const std::function<std::string()>& what, const std::function<int()>& work) {
  std::lock_guard<std::recursive_mutex> hold(device_lock);
  if (int error = refused_beside_capture(stream)) return error;
  if (capturing(stream) && ((Stream*)stream)->invalid) return CAPTURE_INVALIDATED;
  if (recording) recording->push_back(what());
  if (capturing(stream)) {
    ((Stream*)stream)->graph->push_back(work);
    return SUCCESS;
  }
  return computing ? guarded(work) : SUCCESS;
}

static int refused_in_capture(Pointer stream) {                         // CUDA gives up the capture
  if (!capturing(stream)) return SUCCESS;
  ((Stream*)stream)->invalid = true;
  return CAPTURE_UNSUPPORTED;
}

int synchronise(Pointer stream) { counts.synchronisations++; return refused_in_capture(stream); }

// cudaMalloc and the like, which may wait: allowed beside a relaxed capture alone.
static int unsafe() { return give_up_if([](Stream* s) { return s->mode != cudaStreamCaptureModeRelaxed; }, CAPTURE_UNSUPPORTED); }

// ---------------------------------------------------------------- memory: the last byte before a page of no access

static const size_t PAGE = 4096;
struct Block { char* base; size_t bytes; size_t size; };
static std::map<void*, Block> blocks;
static std::deque<Block> freed;                                         // closed for a while, so that nothing else is there
static const size_t MOST_FREED = 2000;
static size_t in_use = 0, most_in_use = 0;
static const size_t MEMORY = 80ul << 30;

static int allocate(Pointer* at, size_t size) {
  std::lock_guard<std::recursive_mutex> hold(device_lock);
  if (int error = unsafe()) return error;
  size_t pages = (size + PAGE - 1) / PAGE * PAGE, bytes = pages + PAGE;
  if (in_use + size > MEMORY) return OUT_OF_MEMORY;
  char* base = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect(base + pages, PAGE, PROT_NONE);
  *at = base + pages - size;
  if (computing) memset(base, 0xFF, pages);                             // NaN in float32 and float64, -1 in integers
  blocks[*at] = {base, bytes, size};
  in_use += size;
  if (in_use > most_in_use) most_in_use = in_use;
  counts.allocations++;
  return SUCCESS;
}

static int release(Pointer at) {
  std::lock_guard<std::recursive_mutex> hold(device_lock);
  auto found = blocks.find(at);
  if (!at || found == blocks.end()) return at ? INVALID_VALUE : SUCCESS;
  in_use -= found->second.size;
  madvise(found->second.base, found->second.bytes, MADV_DONTNEED);
  mprotect(found->second.base, found->second.bytes, PROT_NONE);
  freed.push_back(found->second);
  if (freed.size() > MOST_FREED) {
    munmap(freed.front().base, freed.front().bytes);
    freed.pop_front();
  }
  blocks.erase(found);
  return SUCCESS;
}

static int copy(Pointer to, const void* from, size_t size, int kind, Pointer stream, bool waits) {
  if (kind == cudaMemcpyHostToDevice) counts.to_device++;
  if (kind == cudaMemcpyDeviceToHost) counts.to_host++;
  if (kind == cudaMemcpyDeviceToDevice) counts.device_copies++;
  if (waits && kind == cudaMemcpyDeviceToHost) if (int error = synchronise(stream)) return error;
  auto work = [=] { memmove(to, from, size); return (int)SUCCESS; };
  if (!computing && kind != cudaMemcpyDeviceToDevice) return guarded(work);         // the host may look at it
  return submit(stream, [=] { return "copy " + std::to_string(size); }, work);
}

static int fill(Pointer at, int value, size_t size, Pointer stream) {
  counts.device_copies++;
  return submit(stream, [=] { return "fill " + std::to_string(size); }, [=] { memset(at, value, size); return (int)SUCCESS; });
}

static double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e3 + time.tv_nsec * 1e-6;
}

#define CUDA(name, arguments) extern "C" cudaError_t name arguments
#define DONE return cudaSuccess
#define ERROR(code) return (cudaError_t)(code)

extern "C" const char* cudaGetErrorName(cudaError_t e) {
  return e == ILLEGAL_ADDRESS ? "cudaErrorIllegalAddress" : e == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" :
         e == CAPTURE_UNSUPPORTED ? "cudaErrorStreamCaptureUnsupported" :
         e == CAPTURE_IMPLICIT ? "cudaErrorStreamCaptureImplicit" :
         e == CAPTURE_INVALIDATED ? "cudaErrorStreamCaptureInvalidated" : "cudaErrorInvalidValue"; }
extern "C" const char* cudaGetErrorString(cudaError_t) { return "on the emulated GPU"; }
CUDA(cudaGetLastError, ()) { DONE; }

// ---------------------------------------------------------------- the device: an H100

CUDA(cudaDriverGetVersion, (int* v)) { *v = 13020; DONE; }
CUDA(cudaRuntimeGetVersion, (int* v)) { *v = 13020; DONE; }
CUDA(cudaGetDevice, (int* d)) { *d = 0; DONE; }
CUDA(cudaGetDeviceCount, (int* n)) { *n = 1; DONE; }
CUDA(cudaSetDevice, (int d)) { return d ? cudaErrorInvalidDevice : cudaSuccess; }
CUDA(cudaDeviceGetPCIBusId, (char* text, int, int)) { strcpy(text, "0000:00:00.0"); DONE; }
CUDA(cudaDeviceGetByPCIBusId, (int* d, const char*)) { *d = 0; DONE; }
CUDA(cudaDeviceCanAccessPeer, (int* can, int, int)) { *can = 0; DONE; }
CUDA(cudaDeviceGetLimit, (size_t* value, cudaLimit)) { *value = 1024; DONE; }
CUDA(cudaDeviceSetLimit, (cudaLimit, size_t)) { DONE; }
CUDA(cudaDeviceGetAttribute, (int* value, cudaDeviceAttr which, int)) {
  static const std::map<int, int> values = {
    {cudaDevAttrComputeCapabilityMajor, 9}, {cudaDevAttrComputeCapabilityMinor, 0}, {cudaDevAttrWarpSize, 32},
    {cudaDevAttrMultiProcessorCount, 132}, {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048}, {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472}, {cudaDevAttrMaxRegistersPerBlock, 65536},
    {cudaDevAttrMemoryPoolsSupported, 1}};
  auto found = values.find(which);
  *value = found == values.end() ? 0 : found->second;
  DONE; }
CUDA(cudaGetDeviceProperties, (cudaDeviceProp* p, int)) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "emulated H100");
  p->major = 9; p->warpSize = 32; p->maxThreadsPerBlock = 1024; p->multiProcessorCount = 132; p->totalGlobalMem = MEMORY;
  p->sharedMemPerBlock = 49152; p->maxThreadsPerMultiProcessor = 2048; p->regsPerBlock = 65536;
  DONE; }

// ---------------------------------------------------------------- memory

CUDA(cudaMalloc, (Pointer* p, size_t n)) { ERROR(allocate(p, n)); }
CUDA(cudaMallocManaged, (Pointer* p, size_t n, unsigned)) { ERROR(allocate(p, n)); }
CUDA(cudaMallocAsync, (Pointer* p, size_t n, cudaStream_t)) { ERROR(allocate(p, n)); }
CUDA(cudaFree, (Pointer p)) { ERROR(release(p)); }
CUDA(cudaFreeAsync, (Pointer p, cudaStream_t)) { ERROR(release(p)); }
CUDA(cudaHostAlloc, (Pointer* p, size_t n, unsigned)) { *p = malloc(n ? n : 1); return *p ? cudaSuccess : cudaErrorMemoryAllocation; }
CUDA(cudaFreeHost, (Pointer p)) { free(p); DONE; }
CUDA(cudaMemGetInfo, (size_t* free, size_t* total)) { *free = MEMORY - in_use; *total = MEMORY; DONE; }
CUDA(cudaMemcpy, (Pointer to, const void* from, size_t n, cudaMemcpyKind k)) {
  if (int error = unsafe()) ERROR(error);
  ERROR(copy(to, from, n, k, nullptr, true)); }
CUDA(cudaMemcpyAsync, (Pointer to, const void* from, size_t n, cudaMemcpyKind k, cudaStream_t s)) {
  ERROR(copy(to, from, n, k, s, false)); }
CUDA(cudaMemset, (Pointer p, int value, size_t n)) { ERROR(fill(p, value, n, nullptr)); }
CUDA(cudaMemsetAsync, (Pointer p, int value, size_t n, cudaStream_t s)) { ERROR(fill(p, value, n, s)); }
CUDA(cudaPointerGetAttributes, (cudaPointerAttributes* a, const void* p)) {
  memset(a, 0, sizeof *a); a->type = cudaMemoryTypeDevice; a->devicePointer = (Pointer)p; DONE; }

// ---------------------------------------------------------------- streams and events

CUDA(cudaStreamCreateWithFlags, (cudaStream_t* s, unsigned flags)) {
  std::lock_guard<std::recursive_mutex> hold(device_lock);
  streams.push_back(new Stream{false, false, nullptr, !(flags & cudaStreamNonBlocking), 0});
  *s = (cudaStream_t)streams.back(); DONE; }
CUDA(cudaStreamCreate, (cudaStream_t* s)) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }
CUDA(cudaStreamCreateWithPriority, (cudaStream_t* s, unsigned flags, int)) { return cudaStreamCreateWithFlags(s, flags); }
CUDA(cudaStreamDestroy, (cudaStream_t)) { DONE; }
CUDA(cudaStreamSynchronize, (cudaStream_t s)) { ERROR(synchronise(s)); }
CUDA(cudaDeviceSynchronize, ()) {
  counts.synchronisations++;
  ERROR(give_up_if([](Stream*) { return true; }, CAPTURE_UNSUPPORTED)); }
CUDA(cudaStreamQuery, (cudaStream_t s)) { ERROR(refused_in_capture(s)); }
CUDA(cudaStreamWaitEvent, (cudaStream_t, cudaEvent_t, unsigned)) { DONE; }
CUDA(cudaStreamGetFlags, (cudaStream_t, unsigned* flags)) { *flags = 0; DONE; }
CUDA(cudaStreamGetPriority, (cudaStream_t, int* priority)) { *priority = 0; DONE; }
CUDA(cudaEventCreate, (cudaEvent_t* e)) { *e = (cudaEvent_t)new double(0); DONE; }
CUDA(cudaEventCreateWithFlags, (cudaEvent_t* e, unsigned)) { return cudaEventCreate(e); }
CUDA(cudaEventDestroy, (cudaEvent_t e)) { delete (double*)e; DONE; }
CUDA(cudaEventRecord, (cudaEvent_t e, cudaStream_t)) { *(double*)e = now(); DONE; }
CUDA(cudaEventSynchronize, (cudaEvent_t)) { counts.synchronisations++; DONE; }
CUDA(cudaEventQuery, (cudaEvent_t)) { DONE; }
CUDA(cudaEventElapsedTime, (float* ms, cudaEvent_t a, cudaEvent_t b)) { *ms = *(double*)b - *(double*)a; DONE; }

// ---------------------------------------------------------------- graphs

CUDA(cudaStreamBeginCapture, (cudaStream_t s, cudaStreamCaptureMode mode)) {
  if ((size_t)s <= 2) return cudaErrorStreamCaptureUnsupported;          // the default stream cannot be captured
  *(Stream*)s = {true, false, new Operations, ((Stream*)s)->blocking, mode}; DONE; }
CUDA(cudaStreamEndCapture, (cudaStream_t s, cudaGraph_t* graph)) {
  Stream& stream = *(Stream*)s;
  stream.capturing = false; *graph = (cudaGraph_t)stream.graph;
  return stream.invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess; }
CUDA(cudaStreamIsCapturing, (cudaStream_t s, cudaStreamCaptureStatus* status)) {
  if (int error = refused_beside_capture(s)) ERROR(error);
  *status = !capturing(s) ? cudaStreamCaptureStatusNone : ((Stream*)s)->invalid ? cudaStreamCaptureStatusInvalidated
            : cudaStreamCaptureStatusActive; DONE; }
CUDA(cudaGraphInstantiate, (cudaGraphExec_t* run, cudaGraph_t graph, unsigned long long)) {
  *run = (cudaGraphExec_t)new Operations(*(Operations*)graph); DONE; }
CUDA(cudaGraphDestroy, (cudaGraph_t graph)) { delete (Operations*)graph; DONE; }
CUDA(cudaGraphExecDestroy, (cudaGraphExec_t run)) { delete (Operations*)run; DONE; }
CUDA(cudaGraphUpload, (cudaGraphExec_t, cudaStream_t)) { DONE; }
CUDA(cudaGraphLaunch, (cudaGraphExec_t run, cudaStream_t s)) {
  counts.graph_launches++;
  Operations* operations = (Operations*)run;
  ERROR(submit(s, [=] { return "graph " + std::to_string(operations->size()); }, [=] {
    for (auto& work : *operations) if (int error = work()) return error;
    return (int)SUCCESS; })); }

// ---------------------------------------------------------------- for device.py

extern "C" void host_counts(Counts* to) { *to = counts; }
extern "C" size_t host_memory(int reset) { if (reset) most_in_use = in_use; return most_in_use; }
extern "C" void host_compute(int yes) { computing = yes; }
extern "C" void host_record() { recording = new std::vector<std::string>; }
extern "C" char* host_recorded() {                                      // one line an operation; free() it
  std::string text;
  for (auto& line : *recording) text += line + "\n";
  delete recording;
  recording = nullptr;
  return strdup(text.c_str()); }
