// What makes C++ of a kernel's CUDA source: its keywords, its thread's place in the grid, and the functions it may call.
#pragma once
#define __CUDACC_VER_MAJOR__ 13
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <math.h>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector_types.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __shared__ static                // one block runs at a time
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct HostThread { uint3 thread, block, block_dim, grid_dim; };
extern "C" HostThread host_thread;
extern "C" void host_barrier(int of_block);
#define threadIdx (host_thread.thread)
#define blockIdx (host_thread.block)
#define blockDim (host_thread.block_dim)
#define gridDim (host_thread.grid_dim)
#define warpSize 32
#define __syncthreads() host_barrier(1)
#define __syncwarp(...) host_barrier(0)
static inline void __threadfence() {}

// Each lane of the warp shows its x; read(all) is what it makes of those of all 32, and is called before the next one.
template <class T, class Read> static inline auto host_exchange(T x, Read read) {
  static T shown[1024];
  int at = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  shown[at] = x;
  host_barrier(0);
  auto result = read(shown + at / 32 * 32);
  host_barrier(0);
  return result;
}
template <class T> static inline T host_shuffle(T x, int from) { return host_exchange(x, [=](T* all) { return all[from]; }); }
#define HOST_LANE ((int)((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32))
template <class T> static inline T __shfl_sync(unsigned, T x, int from, int = 32) { return host_shuffle(x, from & 31); }
template <class T> static inline T __shfl_xor_sync(unsigned, T x, int bits, int = 32) { return host_shuffle(x, HOST_LANE ^ bits); }
template <class T> static inline T __shfl_up_sync(unsigned, T x, int by, int = 32) {
  return host_shuffle(x, HOST_LANE < by ? HOST_LANE : HOST_LANE - by);
}
template <class T> static inline T __shfl_down_sync(unsigned, T x, int by, int = 32) {
  return host_shuffle(x, HOST_LANE + by > 31 ? HOST_LANE : HOST_LANE + by);
}

#define __popc __builtin_popcount
#define __popcll __builtin_popcountll
#define __clz __builtin_clz
#define HOST_BITS(name, To, From) static inline To name(From x) { To y; memcpy(&y, &x, sizeof y); return y; }
HOST_BITS(__int_as_float, float, int)
HOST_BITS(__float_as_int, int, float)
HOST_BITS(__uint_as_float, float, unsigned)
HOST_BITS(__float_as_uint, unsigned, float)
HOST_BITS(__longlong_as_double, double, long long)
HOST_BITS(__double_as_longlong, long long, double)
template <class T> static inline T __ldg(const T* p) { return *p; }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
using std::max;
using std::min;

#define HOST_ATOMIC(name, result) \
  template <class T, class U> static inline T name(T* p, U value) { T old = *p, v = (T)value; *p = (result); return old; }
HOST_ATOMIC(atomicAdd, old + v)
HOST_ATOMIC(atomicSub, old - v)
HOST_ATOMIC(atomicMax, old > v ? old : v)
HOST_ATOMIC(atomicMin, old < v ? old : v)
HOST_ATOMIC(atomicExch, v)
HOST_ATOMIC(atomicAnd, old & v)
HOST_ATOMIC(atomicOr, old | v)
HOST_ATOMIC(atomicXor, old ^ v)
template <class T, class U, class V> static inline T atomicCAS(T* p, U compare, V value) {
  T old = *p;
  if (old == (T)compare) *p = (T)value;
  return old;
}

static inline int host_votes(bool yes) {                                // how many lanes say yes
  return host_exchange((int)yes, [](int* all) { int n = 0; for (int k = 0; k < 32; k++) n += all[k]; return n; });
}
static inline int __any_sync(unsigned, int yes) { return host_votes(yes) > 0; }
static inline int __all_sync(unsigned, int yes) { return host_votes(yes) == 32; }

// host_call_NAME(arguments): the kernel, from pointers to its arguments; host_sizes_NAME: their sizes, and a 0
template <class T> using Plain = typename std::remove_cv<typename std::remove_reference<T>::type>::type;
template <class... A, std::size_t... I> static inline void host_call(void (*f)(A...), void** p, std::index_sequence<I...>) {
  f((*(Plain<A>*)p[I])...);
}
template <class... A> static inline void host_call(void (*f)(A...), void** p) {
  host_call(f, p, std::index_sequence_for<A...>{});
}
template <class... A> struct HostSizes { static constexpr int values[] = {(int)sizeof(Plain<A>)..., 0}; };
template <class... A> static constexpr const int* host_sizes(void (*)(A...)) { return HostSizes<A...>::values; }
#define HOST_KERNEL(name, ...) \
  extern "C" void host_call_##name(void** p) { host_call(&__VA_ARGS__, p); } \
  extern "C" const int* const host_sizes_##name = host_sizes(&__VA_ARGS__);
