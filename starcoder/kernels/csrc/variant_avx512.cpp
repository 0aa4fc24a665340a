#include "simd_avx512.h"
#include "variant.inl"

const Kernels *avx512_kernels() { return &kKernels; }
