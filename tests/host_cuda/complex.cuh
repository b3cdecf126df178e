// In place of cupy/complex.cuh, which is Thrust's: enough for CuPy's headers and for sums.
#pragma once
namespace thrust {
template <class T> struct complex {
  T r, i;
  complex() : r(0), i(0) {}
  template <class U> complex(U x) : r((T)x), i(0) {}
  complex(T x, T y) : r(x), i(y) {}
  template <class U> complex(const complex<U>& x) : r((T)x.r), i((T)x.i) {}
  T real() const { return r; }
  T imag() const { return i; }
  operator T() const { return r; }
  bool operator<(const complex& o) const { return r < o.r; }
  bool operator==(const complex& o) const { return r == o.r; }
  bool operator!=(const complex& o) const { return r != o.r; }
};
template <class T> inline complex<T> operator+(const complex<T>& x, const complex<T>& y) { return {x.r + y.r, x.i + y.i}; }
template <class T> inline T norm(const complex<T>& x) { return x.r * x.r + x.i * x.i; }
template <class T> inline complex<T> conj(const complex<T>& x) { return x; }
template <class T> inline T abs(const complex<T>& x) { return x.r; }
}
using thrust::complex;
using thrust::conj;
using thrust::norm;
