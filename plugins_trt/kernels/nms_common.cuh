// What the four kernels of batched NMS share. Compile without fused multiply-adds: the IoU is
// defined operation by operation in float32.
#pragma once

typedef unsigned long long Word;  // 64 candidates, one bit each

constexpr int TILE = 2048;  // candidates that one block sorts
constexpr int WORD_BITS = 64;
// The key of what is no candidate: above all others.
constexpr Word NO_KEY = ~0ull;

__device__ __forceinline__ int clamp(int value, int low, int high) {
  return value < low ? low : value > high ? high : value;
}

__device__ __forceinline__ Word bit(int place) { return 1ull << place; }

__device__ __forceinline__ Word bits_below(int place) { return bit(place) - 1; }

// Whether a kept box suppresses a worse one of the same label: IoU > threshold in float32. An IoU
// that is not a number suppresses nothing.
__device__ __forceinline__ bool overlap_too_much(float4 a, float4 b, float threshold) {
  const float width = fminf(a.z, b.z) - fmaxf(a.x, b.x);
  const float height = fminf(a.w, b.w) - fmaxf(a.y, b.y);
  const float shared = fmaxf(width, 0.0f) * fmaxf(height, 0.0f);
  // Most pairs are apart; only a negative threshold needs the division for them.
  if (!(shared > 0.0f) && threshold >= 0.0f) return false;
  const float area_a = (a.z - a.x) * (a.w - a.y);
  const float area_b = (b.z - b.x) * (b.w - b.y);
  return shared / (area_a + area_b - shared) > threshold;
}
