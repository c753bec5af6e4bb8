// An iteration as a list of steps over named tensors: what depends on the architecture and the task, and on no device.
//
// The order of the backward steps is that of autograd: a level's "point" and "up", the level inside it, then its "down2",
// "skip" and "down1". Buffers are given lives by the steps that use them, so the arena can overlay them.
#pragma once

#include <string>
#include <vector>

#include "fit/architecture.h"
#include "fit/arena.h"

namespace dipengine {

// z, or the raw output of a convolution that a norm stands behind.
struct Node {
  std::string name;
  int64_t height, width, channels;
  double slope;     // of the leaky ReLU behind the norm; z has neither
  int gamma, beta;  // parameters; -1 for z
  int raw;          // buffer
  int raw_again;    // what the backward pass reads: the same, but for a z that is made twice
  int gradient;     // buffer of leaky_relu' * d_activation; -1 for z, and where its only reader forms it (Graph::forms)
  int64_t numbers;  // first of its per-channel numbers, six of `channels` each: see Numbers
  bool skip = false;  // past a level's inside
};

// What a convolution reads: a node, or its part of a concatenation.
struct Part {
  int node;
  int upsample;
  int64_t merged_first;  // channel of the merge norm at which it begins; -1 outside a merge
  int64_t numbers;       // of the merge: mean, variance, outer scale, outer shift, sum, product
  bool accumulate;       // backward: a share of the node's gradient is there already
};

struct Unit {
  std::string name;
  int node;  // output; -1 for the head
  int weight, bias;  // parameters; bias -1 where a norm cancels it
  int64_t kernel, stride, pad;
  bool mean;  // a 2x2 mean behind it, made part of the kernel
  std::vector<Part> parts;
  int merge_gamma = -1, merge_beta = -1;
  int wide_weight = -1, wide_gradient = -1;  // buffers, with a mean
  // Buffers of what its upsampled part gives products, on a CUDA device where many blocks would make it while loading; of the backward
  // pass: the same, but on a large canvas, where it is made anew in the place of the unit's raw, once the gradient in front of it is formed
  // (unless it is larger).
  int operand = -1, operand_again = -1;
  int64_t stored_kernel() const { return mean ? kernel + 1 : kernel; }
};

enum class StepKind {
  perturb,           // z and noise
  merge,             // statistics of what a concatenation holds
  forward,           // a unit
  loss,              // sigmoid, squared error, average, statistic, gradient: one pass
  image,             // sigmoid, average, statistic
  measure,           // A
  data_term,
  measure_backward,  // A transposed
  image_backward,    // sigmoid backwards
  backward,          // a unit
  merge_backward,    // the norm of a concatenation, backwards
  adam,
  inspect            // A of the average against x0; run now and then
};

struct Step {
  StepKind kind;
  int unit;
  std::string name;
  int workspace = -1;  // buffer
};

struct Graph {
  std::vector<ParameterSpec> specs;
  std::vector<Node> nodes;  // nodes[0] is z
  std::vector<Unit> units;
  std::vector<Step> steps;
  Arena arena;
  int64_t height, width;                // canvas
  int64_t numbers = 0;                  // float64 of all nodes and merges
  int64_t most_channels = 0;
  int logits = -1, d_logits = -1;       // float32 [height, width, out]
  int forms = -1;                       // the unit whose backward pass forms the gradient behind it from d_logits; -1: none
  bool over_raw = false;                // its data gradient takes the place of its raw
  int image = -1, d_image = -1;         // float32 [painted height, width, out], where A or the data term need it
  int measured = -1, d_measured = -1;   // float32 [data height, width, out], behind another A than the identity
  int inspected = -1;                   // A of the average, likewise
  int painted = -1;                     // the step that adds the output to its slot's averages: the slot is untouched before
  int judged = -1;                      // the step before which the loss is known and nothing is learnt yet

  // Gives each step a workspace of so many bytes, of all fits together, and decides where every buffer lies. branched: steps up to
  // the loss, and those behind it, may be under way at the same time.
  void pack(const std::vector<size_t>& workspaces, bool branched = false);
};

// Canvas pixels up to which a graph leaves nothing out for the sake of memory: there time is dear and memory is not. By the canvas alone,
// never by how many fits there are, as a gradient that is formed may have other bits. A variable for tests, whose images are small.
extern int64_t most_stored_pixels;

// Canvas pixels, at its own resolution, from which on an "up" unit of nearest samples is given its operands ready made, in bfloat16 on a CUDA
// device: what it reads of the part below, and the gradient behind it. Bits are the same either way. A variable for tests.
extern int64_t least_formed_pixels;

// Canvas pixels from which on one launch has both gradients of the outermost 1x1 unit, in bfloat16 on a CUDA device, and forms the gradient
// behind it, which then is nowhere (two launches do, where the device has little shared memory). Bits are others. A variable for tests.
extern int64_t least_joint_pixels;

// The graph of valid params, with every buffer but workspaces: `copies` of each, where so many fits run at once. `recomputes`, as a
// CUDA device does: z is not kept from the forward pass to the end of the backward one, but drawn anew there by a second step
// "perturb"; and the largest gradient of all, of the canvas' size with all channels, is nowhere on canvases of which one launch has both
// gradients of the 1x1 unit in front of the head, and on large ones: that unit forms it from that of the logits. On a large canvas it leaves
// its own data gradient in the place of its raw output, read for the last time.
Graph make_graph(const dipengine_fit_params& params, int64_t copies = 1, bool recomputes = false);

}  // namespace dipengine
