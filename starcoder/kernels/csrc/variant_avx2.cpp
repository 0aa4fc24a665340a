#include "simd_avx2.h"
#include "variant.inl"

const Kernels *avx2_kernels() { return &kKernels; }
