// cuBLAS: the products that CuPy asks for. Matrices lie by columns; leading dimensions are checked as cuBLAS does.
#include "device.h"
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

static const int SINGLE = 0, DOUBLE = 1, BFLOAT = 14, INVALID = 7, NOT_SUPPORTED = 15;      // cudaDataType, cublasStatus
static const int IN_SINGLE = 68;                                                           // cublasComputeType_t
struct Handle { Pointer stream; int pointer_mode, math_mode; };

struct Shape { int ta, tb, m, n, k, lda, ldb, ldc; };
static bool fits(const Shape& s) {
  return s.m >= 0 && s.n >= 0 && s.k >= 0 && s.lda >= (s.ta ? s.k : s.m) && s.ldb >= (s.tb ? s.n : s.k) && s.ldc >= s.m &&
         s.lda > 0 && s.ldb > 0 && s.ldc > 0;
}

template <class T> static void product(Shape s, T alpha, const T* A, const T* B, T beta, T* C) {
  long m = s.m, n = s.n, k = s.k, lda = s.lda, ldb = s.ldb, ldc = s.ldc;
  std::vector<T> turned, column(m);
  if (s.ta) {                                                           // so that the inner loop runs along memory
    turned.resize((size_t)m * k);
    for (long i = 0; i < m; i++) for (long l = 0; l < k; l++) turned[l * m + i] = A[i * lda + l];
    A = turned.data();
    lda = m;
  }
  for (long j = 0; j < n; j++) {
    T* __restrict sum = column.data();
    for (long i = 0; i < m; i++) sum[i] = 0;
    for (long l = 0; l < k; l++) {
      T b = s.tb ? B[l * ldb + j] : B[j * ldb + l];
      const T* a = A + l * lda;
      for (long i = 0; i < m; i++) sum[i] += b * a[i];
    }
    T* c = C + j * ldc;
    for (long i = 0; i < m; i++) c[i] = alpha * sum[i] + (beta == 0 ? 0 : beta * c[i]);
  }
}

// One product or many; at(k) gives the k-th A, B and C. The scalars are read now if they are the host's.
template <class T> struct Operands { const T* a; const T* b; T* c; };
template <class T, class At> static int submit_products(Handle* h, Shape s, const T* alpha, const T* beta, int count, At at) {
  counts.products++;
  if (!fits(s)) return INVALID;
  bool on_host = h->pointer_mode == 0;
  T alpha_now = on_host ? *alpha : 0, beta_now = on_host ? *beta : 0;
  auto what = [=] { return "product " + std::to_string(s.m) + " " + std::to_string(s.n) + " " + std::to_string(s.k) + " " +
                           std::to_string(count); };
  int error = submit(h->stream, what, [=] {
    for (int k = 0; k < count; k++) {
      Operands<T> x = at(k);
      product<T>(s, on_host ? alpha_now : *alpha, x.a, x.b, on_host ? beta_now : *beta, x.c);
    }
    return (int)SUCCESS; });
  return error ? 14 : 0;                                                // CUBLAS_STATUS_INTERNAL_ERROR
}

template <class T> static int strided(Handle* h, Shape s, const void* alpha, const void* A, long long sa, const void* B,
                                      long long sb, const void* beta, void* C, long long sc, int count) {
  return submit_products<T>(h, s, (const T*)alpha, (const T*)beta, count, [=](int k) {
    return Operands<T>{(const T*)A + sa * k, (const T*)B + sb * k, (T*)C + sc * k}; });
}

// Of bfloat16, each the upper half of a float: their products and sums are float's.
static std::vector<float> widened(const uint16_t* x, long rows, long columns, long leading) {
  std::vector<float> y((size_t)leading * columns);
  for (long j = 0; j < columns; j++) for (long i = 0; i < rows; i++) {
    uint32_t bits = (uint32_t)x[j * leading + i] << 16;
    memcpy(&y[j * leading + i], &bits, sizeof bits);
  }
  return y;
}

static int of_bfloats(Handle* h, Shape s, const float* alpha, const uint16_t* A, const uint16_t* B, const float* beta,
                      float* C) {
  counts.products++;
  if (!fits(s) || h->pointer_mode != 0) return INVALID;
  float alpha_now = *alpha, beta_now = *beta;
  auto what = [=] { return "bf16_product " + std::to_string(s.m) + " " + std::to_string(s.n) + " " + std::to_string(s.k) + " 1"; };
  return submit(h->stream, what, [=] {
    auto a = widened(A, s.ta ? s.k : s.m, s.ta ? s.m : s.k, s.lda), b = widened(B, s.tb ? s.n : s.k, s.tb ? s.k : s.n, s.ldb);
    product<float>(s, alpha_now, a.data(), b.data(), beta_now, C);
    return (int)SUCCESS; }) ? 14 : 0;
}

#define SHAPE Shape{ta, tb, m, n, k, lda, ldb, ldc}
#define STRIDED(alpha, sa, sb, beta, sc, count) (at != bt || at != ct ? NOT_SUPPORTED : \
  at == SINGLE ? strided<float>(h, SHAPE, alpha, A, sa, B, sb, beta, C, sc, count) : \
  at == DOUBLE ? strided<double>(h, SHAPE, alpha, A, sa, B, sb, beta, C, sc, count) : NOT_SUPPORTED)
#define GEMM(letter, T) \
int cublas##letter##gemm_v2(Handle* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* A, int lda, const T* B, \
                            int ldb, const T* beta, T* C, int ldc) { \
  return strided<T>(h, SHAPE, alpha, A, 0, B, 0, beta, C, 0, 1); } \
int cublas##letter##gemmBatched(Handle* h, int ta, int tb, int m, int n, int k, const T* alpha, const T** A, int lda, \
                                const T** B, int ldb, const T* beta, T** C, int ldc, int count) { \
  return submit_products<T>(h, SHAPE, alpha, beta, count, [=](int i) { return Operands<T>{A[i], B[i], C[i]}; }); }

// alpha op(A) + beta op(B), by which CuPy turns a matrix into Fortran's order. B is not read where beta is 0.
template <class T> static int sum(Handle* h, int ta, int tb, long m, long n, T alpha, const T* A, long lda, T beta, const T* B,
                                  long ldb, T* C, long ldc) {
  if (m < 0 || n < 0 || lda < (ta ? n : m) || ldb < (tb ? n : m) || ldc < m || h->pointer_mode != 0) return INVALID;
  return submit(h->stream, [] { return std::string("sum of matrices"); }, [=] {
    for (long j = 0; j < n; j++) for (long i = 0; i < m; i++)
      C[j * ldc + i] = alpha * A[ta ? i * lda + j : j * lda + i] + (beta == 0 ? 0 : beta * B[tb ? i * ldb + j : j * ldb + i]);
    return (int)SUCCESS; }) ? 14 : 0;
}
#define GEAM(letter, T) \
int cublas##letter##geam(Handle* h, int ta, int tb, int m, int n, const T* alpha, const T* A, int lda, const T* beta, \
                         const T* B, int ldb, T* C, int ldc) { \
  return sum<T>(h, ta, tb, m, n, *alpha, A, lda, *beta, B, ldb, C, ldc); }

extern "C" {

GEMM(S, float)
GEMM(D, double)
GEAM(S, float)
GEAM(D, double)

int cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at, int lda,
                 const void* B, int bt, int ldb, const void* beta, void* C, int ct, int ldc, int compute, int) {
  if (at == BFLOAT && bt == BFLOAT && ct == SINGLE && compute == IN_SINGLE)
    return of_bfloats(h, SHAPE, (const float*)alpha, (const uint16_t*)A, (const uint16_t*)B, (const float*)beta, (float*)C);
  return STRIDED(alpha, 0, 0, beta, 0, 1);
}

int cublasGemmStridedBatchedEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at,
                               int lda, long long sa, const void* B, int bt, int ldb, long long sb, const void* beta, void* C,
                               int ct, int ldc, long long sc, int count, int, int) {
  return STRIDED(alpha, sa, sb, beta, sc, count);
}

int cublasCreate_v2(Handle** h) { *h = new Handle{}; return 0; }
int cublasDestroy_v2(Handle* h) { delete h; return 0; }
int cublasGetVersion_v2(Handle*, int* v) { *v = 130200; return 0; }
int cublasSetStream_v2(Handle* h, Pointer stream) { h->stream = stream; return 0; }
int cublasGetStream_v2(Handle* h, Pointer* stream) { *stream = h->stream; return 0; }
int cublasSetPointerMode_v2(Handle* h, int mode) { h->pointer_mode = mode; return 0; }
int cublasGetPointerMode_v2(Handle* h, int* mode) { *mode = h->pointer_mode; return 0; }
int cublasSetMathMode(Handle* h, int mode) { h->math_mode = mode; return 0; }
int cublasGetMathMode(Handle* h, int* mode) { *mode = h->math_mode; return 0; }
int cublasSetWorkspace_v2(Handle*, void*, size_t) { return 0; }

}
