#include "simd_neon.h"
#include "variant.inl"

const Kernels *neon_kernels() { return &kKernels; }
