// Runs a CUDA kernel on the host, to test it where there is no GPU.
//
// Blocks run one after the other, the threads of a block as coroutines that switch at barriers and
// warp operations, in an order drawn from a seed: code that lacks a barrier gives other results in
// another order. Shared memory is filled with ones before each block. Barriers that only some
// threads reach and warp operations without all lanes of their mask are errors.
#pragma once

#define HOST_EMULATION

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static __attribute__((section("kernel_shared")))

struct alignas(16) float4 { float x, y, z, w; };
struct int2 { int x, y; };
struct Index { unsigned x, y, z; };

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clzll(unsigned long long bits) { return bits == 0 ? 64 : __builtin_clzll(bits); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline unsigned long long atomicOr(unsigned long long* place, unsigned long long bits) {
  const unsigned long long before = *place;
  *place |= bits;
  return before;
}

extern "C" {
extern char __start_kernel_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_kernel_shared[] __attribute__((weak, visibility("hidden")));
}

static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;

enum class State { READY, BLOCK_BARRIER, WARP_OPERATION, DONE };

struct Thread {
  State state = State::DONE;
  int line = 0;  // of the barrier or operation it waits at
  unsigned mask = 0;
  uint64_t value = 0;  // it brings to a warp operation
  uint64_t brought[WARP];  // by all lanes, once the operation is complete
  jmp_buf place;
  ucontext_t context;
  bool started = false;
  std::vector<char> stack;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<int> order;
  std::mt19937 random;
  jmp_buf scheduler;
  ucontext_t scheduler_context;
  int current = 0;
  const char* error = nullptr;
  void (*kernel)(void**) = nullptr;
  void** arguments = nullptr;
};

static Block block;

static void switch_to_scheduler() {
  if (_setjmp(block.threads[block.current].place) == 0) _longjmp(block.scheduler, 1);
}

static void wait(State state, int line, unsigned mask, uint64_t value) {
  Thread& own = block.threads[block.current];
  own.state = state;
  own.line = line;
  own.mask = mask;
  own.value = value;
  switch_to_scheduler();
}

static void live() {
  for (;;) {
    block.kernel(block.arguments);
    block.threads[block.current].state = State::DONE;
    switch_to_scheduler();
  }
}

static void resume(int index) {
  block.current = index;
  threadIdx.x = index;
  Thread& own = block.threads[index];
  if (_setjmp(block.scheduler) != 0) return;
  if (own.started) _longjmp(own.place, 1);
  own.started = true;
  own.stack.resize(STACK);
  getcontext(&own.context);
  own.context.uc_stack.ss_sp = own.stack.data();
  own.context.uc_stack.ss_size = own.stack.size();
  own.context.uc_link = nullptr;
  makecontext(&own.context, live, 0);
  setcontext(&own.context);
}

// Whether all lanes have come to the operation that a warp waits at.
static bool warp_is_complete(int first, int threads) {
  const int lanes = std::min(WARP, threads - first);
  int line = -1;
  unsigned waiting = 0, mask = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const Thread& own = block.threads[first + lane];
    if (own.state != State::WARP_OPERATION) continue;
    if (line != -1 && (own.line != line || own.mask != mask)) {
      block.error = "lanes of a warp wait at different operations";
      return false;
    }
    line = own.line;
    mask = own.mask;
    waiting |= 1u << lane;
  }
  return waiting != 0 && waiting == mask;
}

static void release_warp(int first, int threads) {
  const int lanes = std::min(WARP, threads - first);
  for (int lane = 0; lane < lanes; ++lane) {
    Thread& own = block.threads[first + lane];
    if (own.state != State::WARP_OPERATION) continue;
    for (int other = 0; other < lanes; ++other) {
      own.brought[other] = block.threads[first + other].value;
    }
    own.state = State::READY;
  }
}

// Lets warps go on that can: all, or each by chance, so that some run ahead of others.
static bool release_warps(int threads, bool by_chance) {
  int last = -1;
  bool released = false;
  for (int first = 0; first < threads; first += WARP) {
    if (!warp_is_complete(first, threads)) continue;
    last = first;
    if (by_chance && block.random() % 4 != 0) continue;
    release_warp(first, threads);
    released = true;
  }
  if (!released && last != -1) release_warp(last, threads);
  return last != -1;
}

static bool complete_block(int threads) {
  int line = -1;
  for (int index = 0; index < threads; ++index) {
    const Thread& own = block.threads[index];
    if (own.state == State::DONE) continue;
    if (own.state != State::BLOCK_BARRIER || (line != -1 && own.line != line)) return false;
    line = own.line;
  }
  for (int index = 0; index < threads; ++index) {
    if (block.threads[index].state != State::DONE) block.threads[index].state = State::READY;
  }
  return line != -1;
}

static void run_block(int threads, bool shuffled) {
  if (__start_kernel_shared != nullptr) {
    std::memset(__start_kernel_shared, 0xff, __stop_kernel_shared - __start_kernel_shared);
  }
  for (int index = 0; index < threads; ++index) block.threads[index].state = State::READY;
  for (;;) {
    bool all_done = true;
    for (int index : block.order) {
      if (block.threads[index].state == State::READY) resume(index);
    }
    for (int index = 0; index < threads; ++index) {
      all_done = all_done && block.threads[index].state == State::DONE;
    }
    if (all_done) return;
    if (!release_warps(threads, shuffled) && !complete_block(threads) && block.error == nullptr) {
      block.error = "threads wait for others that do not come";
    }
    if (block.error != nullptr) return;
  }
}

template <typename... Parameters, size_t... Numbers>
static void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Numbers...>) {
  kernel(*static_cast<std::remove_cv_t<Parameters>*>(arguments[Numbers])...);
}

// Runs all blocks. Returns what the kernel does wrong, or null.
static const char* launch(void (*kernel)(void**), void** arguments, const unsigned* grid,
                          unsigned threads, unsigned seed) {
  block.kernel = kernel;
  block.arguments = arguments;
  block.error = nullptr;
  block.random.seed(seed);
  if (block.threads.size() < threads) block.threads = std::vector<Thread>(threads);
  block.order.resize(threads);
  std::iota(block.order.begin(), block.order.end(), 0);
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads, 1, 1};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        if (seed != 0) std::shuffle(block.order.begin(), block.order.end(), block.random);
        run_block(threads, seed != 0);
        if (block.error != nullptr) {
          block.threads.clear();  // some are in the middle of the kernel
          return block.error;
        }
      }
    }
  }
  return nullptr;
}

template <typename Value>
static Value shuffle_xor(unsigned mask, Value value, int distance, int line) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  wait(State::WARP_OPERATION, line, mask, bits);
  bits = block.threads[block.current].brought[(block.current % WARP) ^ distance];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static unsigned ballot(unsigned mask, bool vote, int line) {
  wait(State::WARP_OPERATION, line, mask, vote);
  unsigned votes = 0;
  for (int lane = 0; lane < WARP; ++lane) {
    if (mask >> lane & 1 && block.threads[block.current].brought[lane]) votes |= 1u << lane;
  }
  return votes;
}

}  // namespace emulation

#define __syncthreads() emulation::wait(emulation::State::BLOCK_BARRIER, __LINE__, 0, 0)
#define __syncwarp() emulation::wait(emulation::State::WARP_OPERATION, __LINE__, 0xffffffffu, 0)
#define __ballot_sync(mask, vote) emulation::ballot(mask, vote, __LINE__)
#define __shfl_xor_sync(mask, value, distance) \
  emulation::shuffle_xor(mask, value, distance, __LINE__)

// Makes a kernel callable from outside, with the arguments that the driver's launch takes.
#define EMULATE(name)                                                                          \
  template <typename... Parameters>                                                            \
  static void call_##name(void (*kernel)(Parameters...), void** arguments) {                   \
    emulation::call(kernel, arguments, std::index_sequence_for<Parameters...>{});              \
  }                                                                                            \
  extern "C" const char* emulate(void** arguments, const unsigned* grid, unsigned threads,     \
                                 unsigned seed) {                                              \
    return emulation::launch([](void** all) { call_##name(name, all); }, arguments, grid,      \
                             threads, seed);                                                   \
  }

