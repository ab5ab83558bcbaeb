// Batched NMS, step 1: sort the candidates of an image in tiles of 2048, best first.
//
// One block sorts one tile in shared memory by a bitonic network. A key is the inverted score above
// the index, so keys differ, ties go to the lower index and any correct network gives one result.
// Grid: (tiles, images). Block: TILE / 2 threads.
#include "half_precision.cuh"
#include "nms_common.cuh"

constexpr int WARP_SPAN = 64;  // elements that a warp's compare-exchanges of stride <= 32 touch

extern "C" __global__ void __launch_bounds__(TILE / 2) nms_sort(
    const SCORE* __restrict__ scores,  // [images, candidates]
    int candidates,
    Word* __restrict__ keys,        // [images, tiles, TILE], sorted, of a tile's candidates only
    int* __restrict__ tile_counts)  // [images, tiles], candidates with a positive score
{
  __shared__ Word tile[TILE];
  const int thread = threadIdx.x;
  const int first = blockIdx.x * TILE;
  const int here = min(candidates - first, TILE);
  int width = WARP_SPAN;
  while (width < here) width *= 2;

  const SCORE* own_scores = scores + (long long)blockIdx.y * candidates + first;
  for (int place = thread; place < width; place += TILE / 2) {
    const float score = place < here ? to_float(own_scores[place]) : 0.0f;
    const Word inverted = ~__float_as_uint(score);
    tile[place] = score > 0.0f ? inverted << 32 | (unsigned)(first + place) : NO_KEY;
  }

  bool warp_local = false;
  for (int size = 2; size <= width; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      // The first stage reads what other warps loaded.
      if (warp_local && stride <= WARP_SPAN / 2) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      warp_local = stride <= WARP_SPAN / 2;
      if (thread < width / 2) {
        const int low = (thread & ~(stride - 1)) << 1 | (thread & (stride - 1));
        const int high = low | stride;
        const bool ascending = (low & size) == 0;
        const Word a = tile[low], b = tile[high];
        if ((a > b) == ascending) {
          tile[low] = b;
          tile[high] = a;
        }
      }
    }
  }
  __syncthreads();

  const int tile_number = blockIdx.y * gridDim.x + blockIdx.x;
  Word* own_keys = keys + (long long)tile_number * TILE;
  for (int place = thread; place < here; place += TILE / 2) {
    const Word key = tile[place];
    own_keys[place] = key;
    const bool last = place + 1 == here || tile[place + 1] == NO_KEY;
    if (key != NO_KEY && last) tile_counts[tile_number] = place + 1;
  }
  if (thread == 0 && tile[0] == NO_KEY) tile_counts[tile_number] = 0;
}
