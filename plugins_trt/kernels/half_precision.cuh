// Half-precision numbers as their bits, without CUDA's header: NVRTC's package does not carry it.
#pragma once

struct Half {
  unsigned short bits;
};

#ifdef HOST_EMULATION
#include "host_half.h"
#else
__device__ __forceinline__ float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

__device__ __forceinline__ Half to_half(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
#endif

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ void store(float* place, float value) { *place = value; }

__device__ __forceinline__ void store(Half* place, float value) { *place = to_half(value); }
