// The CUDA driver: a module is a shared library made by kernels.py, a launch is a call for each thread of the grid.
#include "device.h"
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

struct Dim { unsigned x, y, z; };
struct HostThread { Dim thread, block, block_dim, grid_dim; };
extern "C" { HostThread host_thread; void host_barrier(int of_block); }   // kernel.h's threadIdx, __syncthreads and so on

struct Function { void (*call)(void**); int mode; const int* sizes; std::string name; };

// ---------------------------------------------------------------- threads that wait for each other: fibers

extern "C" void host_switch(void** from, void* to);                     // save the registers, take those of `to`
asm(R"(
.text
.globl host_switch
.type host_switch, @function
host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size host_switch, .-host_switch
)");

static const size_t STACK = 64 * 1024;
static const unsigned WARP = 32;
enum State { READY, AT_WARP, AT_BLOCK, DONE };                          // which barrier it waits at
struct Fiber { char* stack; void* top; State state; Dim thread; };
static std::vector<Fiber> fibers;
static void* scheduler;
static int running = -1;
static const Function* function;
static void** parameters;

static void begin_fiber() {
  function->call(parameters);
  fibers[running].state = DONE;
  host_switch(&fibers[running].top, scheduler);
  abort();
}

void host_barrier(int of_block) {
  if (running < 0) return;
  fibers[running].state = of_block ? AT_BLOCK : AT_WARP;
  host_switch(&fibers[running].top, scheduler);
}

// Let the threads first ... end - 1 go on if all that are not done wait at this barrier.
static bool pass(State barrier, unsigned first, unsigned end) {
  bool any = false;
  for (unsigned i = first; i < end; i++) {
    if (fibers[i].state != barrier && fibers[i].state != DONE) return false;
    any |= fibers[i].state == barrier;
  }
  for (unsigned i = first; any && i < end; i++) if (fibers[i].state == barrier) fibers[i].state = READY;
  return any;
}

static int run_block(Dim size) {
  unsigned count = size.x * size.y * size.z, done = 0;
  while (fibers.size() < count) fibers.push_back({(char*)aligned_alloc(64, STACK), nullptr, DONE, {}});
  for (unsigned i = 0; i < count; i++) {
    void** top = (void**)(fibers[i].stack + STACK - 64);
    *--top = nullptr;
    *--top = (void*)begin_fiber;                                        // where host_switch returns to
    for (int k = 0; k < 6; k++) *--top = nullptr;
    fibers[i] = {fibers[i].stack, top, READY, {i % size.x, i / size.x % size.y, i / (size.x * size.y)}};
  }
  while (true) {
    for (unsigned i = 0; i < count; i++) if (fibers[i].state == READY) {
      running = i;
      host_thread.thread = fibers[i].thread;
      host_switch(&scheduler, fibers[i].top);
      done += fibers[i].state == DONE;
    }
    running = -1;
    if (done == count) return SUCCESS;
    bool on = false;
    for (unsigned first = 0; first < count; first += WARP) on |= pass(AT_WARP, first, std::min(first + WARP, count));
    if (!on && !pass(AT_BLOCK, 0, count)) return LAUNCH_FAILED;         // threads wait for others that never come
  }
}

// ---------------------------------------------------------------- launches

static int run(const Function& f, Dim grid, Dim block, void** arguments) {
  running = -1;
  if (f.mode == ONE_THREAD) {                                           // its loop goes over everything
    host_thread = {{0, 0, 0}, {0, 0, 0}, {1, 1, 1}, {1, 1, 1}};
    f.call(arguments);
    return SUCCESS;
  }
  host_thread.block_dim = block;
  host_thread.grid_dim = grid;
  function = &f;
  parameters = arguments;
  for (unsigned z = 0; z < grid.z; z++) for (unsigned y = 0; y < grid.y; y++) for (unsigned x = 0; x < grid.x; x++) {
    host_thread.block = {x, y, z};
    if (f.mode == FIBERS) { if (int error = run_block(block)) return error; continue; }
    for (unsigned c = 0; c < block.z; c++) for (unsigned b = 0; b < block.y; b++) for (unsigned a = 0; a < block.x; a++) {
      host_thread.thread = {a, b, c};
      f.call(arguments);
    }
  }
  return SUCCESS;
}

// The values of a launch's arguments, for a graph that runs after the caller's have gone.
struct Saved {
  std::vector<std::vector<char>> values;
  std::vector<void*> pointers;
  Saved(const int* sizes, void** from) {
    for (int k = 0; sizes[k]; k++) values.emplace_back((char*)from[k], (char*)from[k] + sizes[k]);
    for (auto& value : values) pointers.push_back(value.data());
  }
};

// The number of elements that a reduction of CuPy reads, from its indexer; 0 for other kernels. Its last arguments are
// (..., CIndexer in, CIndexer out, int block_stride), and a CIndexer is {size, shape[n], index[n]}.
static long elements_read(const Function& f, void** arguments) {
  int n = 0;
  while (f.sizes[n]) n++;
  if (f.mode != FIBERS || n < 5 || f.sizes[n - 1] != 4 || f.sizes[n - 3] % 16 != 8) return 0;
  const long* in = (const long*)arguments[n - 3];
  long size = 1;
  for (int k = 1; k <= f.sizes[n - 3] / 16; k++) size *= in[k];
  return in[0] == size ? size : 0;
}

extern "C" {

int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void**) {
  const Function* f = (const Function*)handle;
  Dim grid = {gx, gy, gz}, block = {bx, by, bz};
  if (!gx || !gy || !gz || !(bx * by * bz) || bx * by * bz > 1024 || gy > 65535 || gz > 65535 || gx > 2147483647u ||
      shared > 48 * 1024) return INVALID_VALUE;
  counts.launches++;
  auto what = [=] { return "kernel " + f->name + " " + std::to_string(gx * gy * gz) + " " + std::to_string(bx * by * bz) + " " +
                           std::to_string(elements_read(*f, arguments)); };
  if (!capturing(stream)) return submit(stream, what, [=] { return run(*f, grid, block, arguments); });
  auto saved = std::make_shared<Saved>(f->sizes, arguments);
  return submit(stream, what, [=] { return run(*f, grid, block, saved->pointers.data()); });
}

int cuModuleLoadData(void** module, const void* image) {
  const Elf64_Ehdr* header = (const Elf64_Ehdr*)image;
  if (memcmp(header->e_ident, "\177ELF", 4)) return 200;
  size_t size = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
  int file = memfd_create("kernel", 0);
  if (file < 0 || write(file, image, size) != (ssize_t)size) return 200;
  *module = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!*module) fprintf(stderr, "host_cuda: %s\n", dlerror());
  // the file stays open: dlopen knows a library by its path, and a number that is given again would be the same path
  return *module ? SUCCESS : 200;
}

int cuModuleGetFunction(void** f, void* module, const char* name) {
  void* call = dlsym(module, (std::string("host_call_") + name).c_str());
  if (!call) return 500;
  *f = new Function{(void (*)(void**))call, *(int*)dlsym(module, "host_mode"),
                    *(const int* const*)dlsym(module, (std::string("host_sizes_") + name).c_str()), name};
  return SUCCESS;
}

int cuModuleGetGlobal_v2(void** p, size_t* size, void* module, const char* name) {
  *p = dlsym(module, name);
  if (size) *size = 0;
  return *p ? SUCCESS : 500;
}

int cuModuleLoad(void**, char*) { return 801; }
int cuModuleUnload(void*) { return 0; }
int cuGetErrorName(int e, const char** text) { *text = e == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR"; return 0; }
int cuGetErrorString(int e, const char** text) {
  *text = e == ILLEGAL_ADDRESS ? "a kernel read or wrote outside an array" : "on the emulated GPU"; return 0; }
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* v) { *v = 13020; return 0; }
int cuCtxGetCurrent(void** c) { *c = (void*)1; return 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuCtxGetDevice(int* d) { *d = 0; return 0; }
int cuStreamGetCtx(void*, void** c) { *c = (void*)1; return 0; }
int cuFuncGetAttribute(int* value, int which, void*) { *value = which ? 0 : 1024; return 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int, size_t) { *n = 2; return 0; }
int cuOccupancyMaxPotentialBlockSize(int* grid, int* block, void*, void*, size_t, int) { *grid = 264; *block = 256; return 0; }

}
