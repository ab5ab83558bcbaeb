// Batched NMS, step 2: put the sorted tiles into one order and gather the boxes by it.
//
// The rank of a candidate is its place in its tile plus, for each other tile, how many candidates
// there are better, found by binary search. Four searches run at once to hide the latency of loads.
// Grid: (tiles * TILE / BLOCK, images). Block: BLOCK threads.
#include "nms_boxes.cuh"
#include "nms_common.cuh"

constexpr int BLOCK = 256;
constexpr int SEARCHES = 4;

__device__ int rank_among(const Word* keys, const int* counts, int tiles, int own_tile, Word key) {
  int rank = 0;
  for (int first = 0; first < tiles; first += SEARCHES) {
    int count[SEARCHES], better[SEARCHES];
#pragma unroll
    for (int lane = 0; lane < SEARCHES; ++lane) {
      const int tile = first + lane;
      count[lane] = tile < tiles && tile != own_tile ? clamp(counts[tile], 0, TILE) : 0;
      better[lane] = 0;
    }
    for (int step = TILE; step > 0; step /= 2) {
#pragma unroll
      for (int lane = 0; lane < SEARCHES; ++lane) {
        const int place = better[lane] + step;
        const bool inside = place <= count[lane];
        const Word other = inside ? keys[(long long)(first + lane) * TILE + place - 1] : NO_KEY;
        if (other < key) better[lane] = place;
      }
    }
#pragma unroll
    for (int lane = 0; lane < SEARCHES; ++lane) rank += better[lane];
  }
  return rank;
}

extern "C" __global__ void __launch_bounds__(BLOCK) nms_gather(
    const BOX* __restrict__ boxes,         // [images, candidates, 4]
    const int* __restrict__ labels,        // [images, candidates]
    const Word* __restrict__ keys,         // [images, tiles, TILE]
    const int* __restrict__ tile_counts,   // [images, tiles]
    int candidates, int tiles, int span,
    int* __restrict__ order,               // [images, candidates], best first
    float4* __restrict__ sorted_boxes,     // [images, span], of the best
    int* __restrict__ sorted_labels,       // [images, span]
    int* __restrict__ counts)              // [images], candidates with a positive score
{
  const int thread = threadIdx.x, image = blockIdx.y;
  const int* own_counts = tile_counts + image * tiles;
  const Word* own_keys = keys + (long long)image * tiles * TILE;

  if (blockIdx.x == 0 && thread < 32) {
    int total = 0;
    for (int tile = thread; tile < tiles; tile += 32) total += clamp(own_counts[tile], 0, TILE);
    for (int distance = 16; distance > 0; distance /= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, distance);
    }
    if (thread == 0) counts[image] = min(total, candidates);
  }

  constexpr int BLOCKS = TILE / BLOCK;  // of a tile
  const int tile = blockIdx.x / BLOCKS;
  const int place = blockIdx.x % BLOCKS * BLOCK + thread;
  if (place >= own_counts[tile]) return;

  const Word key = own_keys[(long long)tile * TILE + place];
  const int rank = place + rank_among(own_keys, own_counts, tiles, tile, key);
  const int index = (int)(unsigned)key;
  // Both hold for sorted keys; while an engine is tuned, kernels run on memory of any content.
  if (rank >= candidates || (unsigned)index >= (unsigned)candidates) return;
  order[(long long)image * candidates + rank] = index;
  if (rank < span) {
    const long long source = (long long)image * candidates + index;
    const long long target = (long long)image * span + rank;
    sorted_boxes[target] = load_box(boxes, source);
    sorted_labels[target] = labels[source];
  }
}
