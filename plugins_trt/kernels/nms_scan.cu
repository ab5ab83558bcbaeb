// Batched NMS, step 4: walk through the candidates of an image, best first, until MAX_OUT are kept.
//
// 512 candidates at a time: their own part of the bit matrix goes to shared memory and is decided
// 64 candidates at a time, then the rows of the kept ones are joined to mark what they suppress
// further on, all columns in parallel. Candidates past the span of the matrix (rare: 4096 and more
// looked at, fewer than MAX_OUT kept) are compared with the kept boxes directly.
// Grid: (images). Block: BLOCK threads.
#include "nms_boxes.cuh"
#include "nms_common.cuh"

constexpr int BLOCK = 512;
constexpr int WARPS = BLOCK / 32;
constexpr int CHUNK_WORDS = BLOCK / WORD_BITS;  // 512 candidates
constexpr int STRIDE = CHUNK_WORDS + 1;         // keeps rows in different banks
constexpr int LATE = 256;                       // candidates at a time past the span
constexpr int LATE_WORDS = LATE / WORD_BITS;
constexpr unsigned ALL = 0xffffffffu;

struct Output {
  int* indices;      // [MAX_OUT]
  const int* order;  // [candidates]
  int kept;
};

__device__ __forceinline__ Word join_over_warp(Word value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value |= __shfl_xor_sync(ALL, value, distance);
  }
  return value;
}

// Decides 64 candidates in one warp. A lane owns candidates `lane` and `lane + 32`, and the masks of
// those better ones that would suppress them. A candidate is kept as soon as all of these are
// suppressed, and suppressed as soon as one is kept, so the number of rounds is the length of the
// longest chain. Each round decides at least the best undecided candidate.
__device__ Word decide(Word undecided, Word rivals_low, Word rivals_high, int lane) {
  Word kept = 0;
  while (undecided != 0) {
    const bool low = undecided >> lane & 1, high = undecided >> (lane + 32) & 1;
    const Word open = undecided | kept;
    const Word now_kept = (Word)__ballot_sync(ALL, low && !(rivals_low & open)) |
                          (Word)__ballot_sync(ALL, high && !(rivals_high & open)) << 32;
    const Word lost = (Word)__ballot_sync(ALL, low && (rivals_low & kept)) |
                      (Word)__ballot_sync(ALL, high && (rivals_high & kept)) << 32;
    kept |= now_kept;
    undecided &= ~(now_kept | lost);
  }
  return kept;
}

// Decides a chunk of candidates whose bit matrix is in shared memory, `words` x 64 rows. Bits of
// `removed` are set for what is suppressed already. Called by the whole block.
__device__ void decide_chunk(const Word* matrix, Word* removed, Word* kept_words, int words,
                             int first, int count, Output& output) {
  __shared__ int kept_so_far;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) kept_so_far = output.kept;
  for (int word = 0; word < words && output.kept < MAX_OUT; ++word) {
    const Word* rows = matrix + word * WORD_BITS * STRIDE;
    if (warp == 0) {
      const int remaining = clamp(count - first - word * WORD_BITS, 0, WORD_BITS);
      const Word existing = remaining == WORD_BITS ? ~0ull : bits_below(remaining);
      const Word low = rows[lane * STRIDE + word] & bits_below(lane);
      const Word high = rows[(lane + 32) * STRIDE + word] & bits_below(lane + 32);
      const int before = output.kept;
      Word kept = decide(existing & ~removed[word], low, high, lane);
      while (before + __popcll(kept) > MAX_OUT) kept &= ~bit(63 - __clzll(kept));
      for (int place = lane; place < WORD_BITS; place += 32) {
        if (kept >> place & 1) {
          const int target = before + __popcll(kept & bits_below(place));
          output.indices[target] = output.order[first + word * WORD_BITS + place];
        }
      }
      if (lane == 0) {
        kept_words[word] = kept;
        kept_so_far = before + __popcll(kept);
      }
    }
    __syncthreads();
    output.kept = kept_so_far;
    const Word kept = kept_words[word];
    if (warp > word && warp < words) {
      Word lost = kept >> lane & 1 ? rows[lane * STRIDE + warp] : 0;
      if (kept >> (lane + 32) & 1) lost |= rows[(lane + 32) * STRIDE + warp];
      lost = join_over_warp(lost);
      if (lane == 0) removed[warp] |= lost;
    }
    __syncthreads();
  }
}

// Marks what the kept ones of a chunk suppress in the words from `first_word` to `last_word`.
__device__ void remove_later(const Word* mask_rows, int row_words, const Word* kept_words,
                             short* kept_rows, int first_word, int last_word, Word* removed) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int own_word = threadIdx.x / WORD_BITS, place = threadIdx.x % WORD_BITS;
  int kept = 0, better = __popcll(kept_words[own_word] & bits_below(place));
  for (int word = 0; word < CHUNK_WORDS; ++word) {
    kept += __popcll(kept_words[word]);
    if (word < own_word) better += __popcll(kept_words[word]);
  }
  if (kept_words[own_word] >> place & 1) kept_rows[better] = threadIdx.x;
  __syncthreads();
  for (int word = first_word + lane; word < last_word; word += 32) {
    Word lost = 0;
#pragma unroll 4
    for (int row = warp; row < kept; row += WARPS) {
      lost |= mask_rows[(long long)kept_rows[row] * row_words + word];
    }
    // Or gives one result in any order.
    if (lost != 0) atomicOr(&removed[word], lost);
  }
  __syncthreads();
}

struct Candidates {
  const BOX* boxes;
  const int* labels;
  int count;

  __device__ void load(int index, float4* box, int* label) const {
    index = clamp(index, 0, count - 1);
    *box = load_box(boxes, index);
    *label = labels[index];
  }
};

// Decides the candidates from `first` on, which have no rows in the bit matrix.
__device__ void scan_late(const Candidates& candidates, int first, int count, Word* matrix,
                          float4* boxes, int* labels, Word* kept_words, Output& output) {
  __shared__ Word removed[LATE_WORDS];
  float4* kept_boxes = reinterpret_cast<float4*>(matrix);  // [LATE], while it is not needed
  int* kept_labels = reinterpret_cast<int*>(kept_boxes + LATE);
  const int thread = threadIdx.x, place = thread % LATE;
  for (; first < count && output.kept < MAX_OUT; first += LATE) {
    if (thread < LATE_WORDS) removed[thread] = 0;
    if (thread < LATE) {
      const int index = first + place < count ? output.order[first + place] : 0;
      candidates.load(index, &boxes[place], &labels[place]);
    }
    bool lost = false;
    for (int group = 0; group < output.kept; group += LATE) {
      const int here = min(output.kept - group, LATE);
      __syncthreads();
      if (thread < here) {
        candidates.load(output.indices[group + thread], &kept_boxes[thread], &kept_labels[thread]);
      }
      __syncthreads();
      for (int rival = thread / LATE; rival < here && !lost; rival += BLOCK / LATE) {
        lost = kept_labels[rival] == labels[place] &&
               overlap_too_much(kept_boxes[rival], boxes[place], IOU_THRESHOLD);
      }
    }
    __syncthreads();
    if (lost) atomicOr(&removed[place / WORD_BITS], bit(place % WORD_BITS));
    __syncthreads();
    for (int cell = thread; cell < LATE * LATE_WORDS; cell += BLOCK) {
      const int row = cell / LATE_WORDS, word = cell % LATE_WORDS;
      if (word < row / WORD_BITS) continue;
      Word bits = 0;
      if (!(removed[row / WORD_BITS] >> row % WORD_BITS & 1)) {
        for (int other = 0; other < WORD_BITS; ++other) {
          const int column = word * WORD_BITS + other;
          if (labels[column] != labels[row] || removed[word] >> other & 1) continue;
          if (overlap_too_much(boxes[row], boxes[column], IOU_THRESHOLD)) bits |= bit(other);
        }
      }
      matrix[row * STRIDE + word] = bits;
    }
    __syncthreads();
    decide_chunk(matrix, removed, kept_words, LATE_WORDS, first, count, output);
  }
}

extern "C" __global__ void __launch_bounds__(BLOCK) nms_scan(
    const BOX* __restrict__ boxes,   // [images, candidates, 4]
    const int* __restrict__ labels,  // [images, candidates]
    const int* __restrict__ order,   // [images, candidates]
    const int* __restrict__ counts,  // [images]
    const Word* __restrict__ mask,   // [images, span, span / WORD_BITS]
    int candidates, int span,
    int* indices)                    // [images, MAX_OUT], -1 after the last one
{
  __shared__ float4 storage[BLOCK * STRIDE / 2];  // aligned for boxes, too
  __shared__ Word removed[WINDOW / WORD_BITS];
  __shared__ Word kept_words[CHUNK_WORDS];
  __shared__ short kept_rows[BLOCK];
  __shared__ float4 late_boxes[LATE];
  __shared__ int late_labels[LATE];
  Word* matrix = reinterpret_cast<Word*>(storage);
  const int thread = threadIdx.x, image = blockIdx.x;
  const int count = clamp(counts[image], 0, candidates);
  const int early = min(count, span), row_words = span / WORD_BITS;
  const int early_words = (early + WORD_BITS - 1) / WORD_BITS;
  const Word* own_mask = mask + (long long)image * span * row_words;
  Output output = {indices + (long long)image * MAX_OUT, order + (long long)image * candidates, 0};

  for (int word = thread; word < early_words; word += BLOCK) removed[word] = 0;
  for (int first = 0; first < early && output.kept < MAX_OUT; first += BLOCK) {
    const int first_word = first / WORD_BITS;
    const int words = min(early_words - first_word, CHUNK_WORDS);
    for (int cell = thread; cell < BLOCK * CHUNK_WORDS; cell += BLOCK) {
      const int row = cell / CHUNK_WORDS, word = cell % CHUNK_WORDS;
      const bool written = first + row < early && word < words && word >= row / WORD_BITS;
      matrix[row * STRIDE + word] =
          written ? own_mask[(long long)(first + row) * row_words + first_word + word] : 0;
    }
    if (thread < CHUNK_WORDS) kept_words[thread] = 0;
    __syncthreads();
    decide_chunk(matrix, removed + first_word, kept_words, words, first, early, output);
    if (output.kept < MAX_OUT && first_word + CHUNK_WORDS < early_words) {
      remove_later(own_mask + (long long)first * row_words, row_words, kept_words, kept_rows,
                   first_word + CHUNK_WORDS, early_words, removed);
    }
  }
  if (span < count) {
    const Candidates own = {boxes + 4ll * image * candidates,
                            labels + (long long)image * candidates, candidates};
    __syncthreads();
    scan_late(own, span, count, matrix, late_boxes, late_labels, kept_words, output);
  }
  __syncthreads();
  for (int place = output.kept + thread; place < MAX_OUT; place += BLOCK) output.indices[place] = -1;
}
