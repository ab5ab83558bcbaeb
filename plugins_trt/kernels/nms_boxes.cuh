// Boxes as the network gives them. An engine may hand over a part of a larger tensor, so nothing is
// assumed about its alignment beyond that of a number.
#pragma once

#include "half_precision.cuh"

template <typename Number>
__device__ __forceinline__ float4 load_box(const Number* boxes, long long index) {
  const Number* own = boxes + 4 * index;
  return make_float4(to_float(own[0]), to_float(own[1]), to_float(own[2]), to_float(own[3]));
}
