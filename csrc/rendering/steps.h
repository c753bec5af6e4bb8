// The steps of a generator's graph, walked before a runtime takes them: which there are, and how large what they make is.
#pragma once

namespace dipengine {

struct GeneratorModel;
struct OnnxFile;

// Throws std::invalid_argument where the graph has more steps than the model's network, steps that the exporter never writes, or
// a tensor larger than any of the network's: a crafted file of few bytes asks for no more memory than an honest one. What the
// file itself says of shapes is not believed. The twin of _check_graph in engine/dipengine/rendering/model.py; the steps are
// those of engine/dipengine/export/onnx_graph.py, converted or not (precision.py beside it).
void check_steps(const OnnxFile& file, const GeneratorModel& model);

}  // namespace dipengine
