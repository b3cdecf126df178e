// CUB's load and reduction of a block of threads, as CuPy's sums use them; CUB's own contain PTX.
#pragma once

namespace cub {

enum BlockLoadAlgorithm { BLOCK_LOAD_DIRECT };

template <class T, int THREADS, int ITEMS, BlockLoadAlgorithm>
struct BlockLoad {
  struct TempStorage {};
  BlockLoad(TempStorage&) {}
  void Load(const T* from, T (&items)[ITEMS], int valid, T otherwise) {
    for (int j = 0, i = threadIdx.x * ITEMS; j < ITEMS; ++j, ++i) items[j] = i < valid ? from[i] : otherwise;
  }
};

template <class T, int THREADS>
struct BlockReduce {
  struct TempStorage { alignas(16) char bytes[THREADS * sizeof(T)]; };
  T* all;
  BlockReduce(TempStorage& storage) : all((T*)storage.bytes) {}
  template <int ITEMS, class Op>
  T Reduce(T (&items)[ITEMS], Op op) {                   // the result is meant for thread 0
    T total = items[0];
    for (int j = 1; j < ITEMS; ++j) total = op(total, items[j]);
    all[threadIdx.x] = total;
    for (int half = THREADS / 2; half; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) all[threadIdx.x] = op(all[threadIdx.x], all[threadIdx.x + half]);
    }
    return all[0];
  }
};

}  // namespace cub
