// Batched NMS, step 3: which of the best candidates overlap too much, as a matrix of bits.
//
// Row r holds a bit for each candidate that r would suppress or, in the 64 x 64 tiles on the
// diagonal, be suppressed by. Words left of the diagonal are not written. A block compares 64 rows
// with 4 x 64 columns; four neighbouring threads share a row and write 32 bytes in one piece.
// Grid: (span / COLUMNS, span / WORD_BITS, images). Block: COLUMNS threads.
#include "nms_common.cuh"

constexpr int WORDS = 4;  // of a row in a block
constexpr int COLUMNS = WORDS * WORD_BITS;
constexpr int STRIDE = WORD_BITS + 1;  // keeps the four columns in different banks

extern "C" __global__ void __launch_bounds__(COLUMNS) nms_mask(
    const float4* __restrict__ sorted_boxes,  // [images, span]
    const int* __restrict__ sorted_labels,    // [images, span]
    const int* __restrict__ counts,           // [images]
    int span,                                 // a multiple of COLUMNS
    Word* __restrict__ mask)                  // [images, span, span / WORD_BITS]
{
  __shared__ float4 column_boxes[WORDS * STRIDE];
  __shared__ int column_labels[WORDS * STRIDE];
  const int thread = threadIdx.x, image = blockIdx.z;
  const int first_row = blockIdx.y * WORD_BITS, first_column = blockIdx.x * COLUMNS;
  const int count = min(counts[image], span);
  if (first_row >= count || first_column >= count || first_column + COLUMNS <= first_row) return;

  const float4* own_boxes = sorted_boxes + (long long)image * span;
  const int* own_labels = sorted_labels + (long long)image * span;
  const int slot = thread / WORD_BITS * STRIDE + thread % WORD_BITS;
  column_boxes[slot] = own_boxes[first_column + thread];
  column_labels[slot] = own_labels[first_column + thread];
  __syncthreads();

  const int row = first_row + thread / WORDS, word = thread % WORDS;
  const int column = first_column + word * WORD_BITS;
  if (row >= count || column < first_row) return;
  const float4 box = own_boxes[row];
  const int label = own_labels[row];
  Word bits = 0;
  for (int other = 0; other < WORD_BITS; ++other) {
    const int place = word * STRIDE + other;
    if (column_labels[place] != label) continue;
    if (overlap_too_much(box, column_boxes[place], IOU_THRESHOLD)) bits |= bit(other);
  }
  mask[((long long)image * span + row) * (span / WORD_BITS) + column / WORD_BITS] = bits;
}
