// RoIAlign with averaging, from the level of a feature pyramid that fits each region.
//
// The mean of bilinear samples on a grid is a product of two sums, one per axis: a bin is a weighted
// sum of feature rows, each a weighted sum of cells. A block works out these weights once for a
// region, merging samples that fall on the same row, and uses them for CHANNELS channels; its
// threads write the result in order. Adaptive sampling with n x n samples per bin so reads about
// (n + 1)^2 cells instead of 4 n^2.
// Grid: (regions, ceil(channels / CHANNELS)). Block: BLOCK threads.
#include "half_precision.cuh"

constexpr int BLOCK = 256;
constexpr int BINS = OUTPUT_HEIGHT * OUTPUT_WIDTH;
constexpr bool ADAPTIVE = SAMPLING_RATIO == 0;
// Cells that a bin may touch on an axis before its samples are taken one by one. Odd, for the banks.
constexpr int CAPACITY = ADAPTIVE ? 33 : 2 * SAMPLING_RATIO + 1;

// One axis of a region, in feature cells.
struct Axis {
  float start, bin, samples;  // `samples` of a bin, a whole number
  int size;                   // of the feature map
};

// A coordinate between two cells.
struct Between {
  int low, high;
  float weight;  // of `high`
  bool inside;
};

__device__ __forceinline__ Axis make_axis(float low, float high, float scale, int size, int bins) {
  const float offset = ALIGNED ? 0.5f : 0.0f;
  const float start = low * scale - offset, end = high * scale - offset;
  const float length = fmaxf(end - start, ALIGNED ? 0.0f : 1.0f);
  const float bin = length / bins;
  return {start, bin, ADAPTIVE ? ceilf(bin) : (float)SAMPLING_RATIO, size};
}

__device__ __forceinline__ Between locate(const Axis& axis, int bin, int sample) {
  const float place =
      axis.start + bin * axis.bin + (sample + 0.5f) * axis.bin / axis.samples;
  const bool inside = place >= -1.0f && place <= axis.size;
  const float cell = fminf(fmaxf(place, 0.0f), axis.size - 1.0f);
  const int low = (int)cell;
  return {low, min(low + 1, axis.size - 1), cell - low, inside};
}

// The samples of a bin that can lie inside: first and one past the last. A region may reach far
// beyond the map; what lies outside adds nothing and must cost nothing.
__device__ int2 samples_inside(const Axis& axis, int bin) {
  const float step = axis.bin / axis.samples;
  if (!(step > 0.0f)) return make_int2(0, (int)axis.samples);
  const float start = axis.start + bin * axis.bin;
  const float first = floorf((-1.0f - start) / step) - 2.0f;
  const float last = ceilf((axis.size - start) / step) + 2.0f;
  const float most = 1e9f;
  return make_int2((int)fminf(fmaxf(first, 0.0f), most),
                   (int)fminf(fminf(last, axis.samples), most));
}

// Sums up the samples of a bin by cell. Returns how many cells there are.
__device__ int collect(const Axis& axis, int bin, int* cells, float* weights) {
  const float share = 1.0f / axis.samples;
  const int2 samples = samples_inside(axis, bin);
  int count = 0;
  for (int sample = samples.x; sample < samples.y; ++sample) {
    const Between at = locate(axis, bin, sample);
    if (!at.inside) continue;
    for (int side = 0; side < 2; ++side) {
      const int cell = side == 0 ? at.low : at.high;
      const float weight = share * (side == 0 ? 1.0f - at.weight : at.weight);
      if (count > 0 && cells[count - 1] == cell) {
        weights[count - 1] += weight;
      } else if (count > 1 && cells[count - 2] == cell) {
        weights[count - 2] += weight;
      } else {
        cells[count] = cell;
        weights[count++] = weight;
      }
    }
  }
  return count;
}

// Cells and weights of the bins along one axis, CAPACITY places per bin.
struct Table {
  int* cells;
  float* weights;
  int* counts;
};

__device__ void fill_tables(const Axis& rows, const Axis& columns, Table row_table,
                            Table column_table) {
  for (int bin = threadIdx.x; bin < OUTPUT_HEIGHT + OUTPUT_WIDTH; bin += BLOCK) {
    const bool of_rows = bin < OUTPUT_HEIGHT;
    const int own = of_rows ? bin : bin - OUTPUT_HEIGHT;
    const Axis& axis = of_rows ? rows : columns;
    const Table& table = of_rows ? row_table : column_table;
    const int place = own * CAPACITY;
    table.counts[own] = collect(axis, own, table.cells + place, table.weights + place);
  }
}

__device__ __forceinline__ float weigh_bin(const VALUE* plane, int width, const Table& rows,
                                           const Table& columns, int i, int j) {
  const int first_row = i * CAPACITY, last_row = first_row + rows.counts[i];
  const int first_column = j * CAPACITY, last_column = first_column + columns.counts[j];
  float sum = 0.0f;
  for (int row = first_row; row < last_row; ++row) {
    const VALUE* line = plane + (long long)rows.cells[row] * width;
    float part = 0.0f;
    for (int column = first_column; column < last_column; ++column) {
      part = fmaf(columns.weights[column], to_float(line[columns.cells[column]]), part);
    }
    sum = fmaf(rows.weights[row], part, sum);
  }
  return sum;
}

// Averages the samples of a bin one by one, for regions whose cells do not fit into shared memory.
__device__ float sample_bin(const VALUE* plane, const Axis& rows, const Axis& columns, int i, int j) {
  const int2 ys = samples_inside(rows, i), xs = samples_inside(columns, j);
  float sum = 0.0f;
  for (int y = ys.x; y < ys.y; ++y) {
    const Between row = locate(rows, i, y);
    if (!row.inside) continue;
    const VALUE* upper = plane + (long long)row.low * columns.size;
    const VALUE* lower = plane + (long long)row.high * columns.size;
    float line = 0.0f;
    for (int x = xs.x; x < xs.y; ++x) {
      const Between column = locate(columns, j, x);
      if (!column.inside) continue;
      const float left = (1.0f - row.weight) * to_float(upper[column.low]) +
                         row.weight * to_float(lower[column.low]);
      const float right = (1.0f - row.weight) * to_float(upper[column.high]) +
                          row.weight * to_float(lower[column.high]);
      line += (1.0f - column.weight) * left + column.weight * right;
    }
    sum += line;
  }
  return sum / rows.samples / columns.samples;
}

// Parameters that there is one of per level.
#define LEVEL_1(parameter) parameter(0)
#define LEVEL_2(parameter) LEVEL_1(parameter) parameter(1)
#define LEVEL_3(parameter) LEVEL_2(parameter) parameter(2)
#define LEVEL_4(parameter) LEVEL_3(parameter) parameter(3)
#define LEVEL_5(parameter) LEVEL_4(parameter) parameter(4)
#define LEVEL_6(parameter) LEVEL_5(parameter) parameter(5)
#define JOIN(a, b) a##b
#define LEVELS_OF(count, parameter) JOIN(LEVEL_, count)(parameter)
#define EACH_LEVEL(parameter) LEVELS_OF(NUM_LEVELS, parameter)
#define FEATURE(i) const VALUE *__restrict__ feature_##i,
#define SIZE(i) int height_##i, int width_##i,

extern "C" __global__ void __launch_bounds__(BLOCK) multilevel_roi_align(
    const float* __restrict__ rois,  // [regions, 5], (image, x1, y1, x2, y2) in pixels
    EACH_LEVEL(FEATURE)              // [images, channels, height, width] per level, finest first
    int images, int channels, EACH_LEVEL(SIZE)
    VALUE* __restrict__ crops)       // [regions, channels, OUTPUT_HEIGHT, OUTPUT_WIDTH]
{
  __shared__ int row_cells[OUTPUT_HEIGHT * CAPACITY], column_cells[OUTPUT_WIDTH * CAPACITY];
  __shared__ float row_weights[OUTPUT_HEIGHT * CAPACITY], column_weights[OUTPUT_WIDTH * CAPACITY];
  __shared__ int row_counts[OUTPUT_HEIGHT], column_counts[OUTPUT_WIDTH];
  const int thread = threadIdx.x;
  const int first_channel = blockIdx.y * CHANNELS;
  const int values = min(channels - first_channel, CHANNELS) * BINS;
  VALUE* own_crops = crops + ((long long)blockIdx.x * channels + first_channel) * BINS;

  const float* roi = rois + 5ll * blockIdx.x;
  const float left = roi[1], top = roi[2], right = roi[3], bottom = roi[4];
  // A sum is finite only if all of it is; what overflows on the way is as far off.
  const float all = fabsf(left) + fabsf(top) + fabsf(right) + fabsf(bottom);
  const bool usable = roi[0] > -1.0f && roi[0] < images && all <= 3.4e38f;
  if (!usable) {
    for (int place = thread; place < values; place += BLOCK) store(own_crops + place, 0.0f);
    return;
  }

  const float width = fmaxf(right - left, 0.0f), height = fmaxf(bottom - top, 0.0f);
  const float size = sqrtf(width * height) / FINEST_SCALE + 1e-6f;
  const VALUE* feature = feature_0;
  int rows_of_map = height_0, columns_of_map = width_0;
  float scale = SPATIAL_SCALE_0;
  // LEVEL_BOUND_i is the least size whose floor(log2(size)) is i or more.
#define TAKE_LEVEL(i)            \
  if (size >= LEVEL_BOUND_##i) { \
    feature = feature_##i;       \
    rows_of_map = height_##i;    \
    columns_of_map = width_##i;  \
    scale = SPATIAL_SCALE_##i;   \
  }
  EACH_LEVEL(TAKE_LEVEL)
  const Axis rows = make_axis(top, bottom, scale, rows_of_map, OUTPUT_HEIGHT);
  const Axis columns = make_axis(left, right, scale, columns_of_map, OUTPUT_WIDTH);
  const long long plane_size = (long long)rows_of_map * columns_of_map;
  feature += ((long long)(int)roi[0] * channels + first_channel) * plane_size;

  const Table row_table = {row_cells, row_weights, row_counts};
  const Table column_table = {column_cells, column_weights, column_counts};
  const bool wide = ADAPTIVE && fmaxf(rows.bin, columns.bin) > CAPACITY - 3;
  if (!wide) fill_tables(rows, columns, row_table, column_table);
  __syncthreads();
  for (int place = thread; place < values; place += BLOCK) {
    const int bin = place % BINS, i = bin / OUTPUT_WIDTH, j = bin % OUTPUT_WIDTH;
    const VALUE* plane = feature + place / BINS * plane_size;
    const float value = wide ? sample_bin(plane, rows, columns, i, j)
                             : weigh_bin(plane, columns.size, row_table, column_table, i, j);
    store(own_crops + place, value);
  }
}
