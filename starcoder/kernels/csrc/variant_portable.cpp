#include "simd_portable.h"
#include "variant.inl"

const Kernels *portable_kernels() { return &kKernels; }
